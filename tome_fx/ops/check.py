"""The check of an input's size."""

from __future__ import annotations

import reprlib
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import has_side_effect

from tome_fx.errors import ConfigError, ShapeError, warn

_TRACED = (
    "torch.jit.trace writes the number of images down: what it makes of this result answers for as "
    "many, however many it is given. For any number pass on torch.export.export(result, images, "
    "dynamic_shapes=...), which OpenVINO takes too."
)
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


def check_input(
    x: Tensor,
    shape: tuple[int, ...],
    name: str,
    tokens: int,
    batch: int | None = None,
    least: int = 1,
    most: int | None = None,
    times: int = 1,
) -> Tensor:
    """Return ``x`` if its shape behind the batch is ``shape``; else raise ``ShapeError``.

    ``batch`` is the only one that the program serves, ``least`` the smallest, ``most`` the largest;
    it serves multiples of ``times``.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        warn(_TRACED)
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"{name} is {_told(x)}, but the model was captured with a tensor of shape "
            f"{('batch', *shape)}. For calls without it, transform the model again without it in "
            "its example inputs."
        )
    if batch is not None and x.shape[0] != batch:
        raise ShapeError(
            f"{name} has a batch of {x.shape[0]}, but the program was captured for a batch of "
            f"{batch} alone: the model's code, or its export, fixes that. Transform it again "
            "with example_inputs of this batch, or export it with a dynamic one."
        )
    if times > 1 and x.shape[0] % times:
        raise ShapeError(
            f"{name} has a batch of {x.shape[0]}, and the model's own code takes images in groups "
            f"of {times}: give a multiple of it."
        )
    below, above = x.shape[0] < least, most is not None and x.shape[0] > most
    if above or (below and least > 2):
        raise ShapeError(
            f"{name} has a batch of {x.shape[0]}, for which the model's own code does something "
            f"else than for {batches(least, most)}. Transform it again with example_inputs of this "
            "batch."
        )
    if below and least > 1:
        raise ShapeError(
            f"{name} holds one image, for which the model's own code does something else than for "
            "two or more. This program is for two or more; one image in example_inputs makes the "
            "other, where it can be captured."
        )
    if tuple(x.shape[1:]) != shape:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, but the model was captured with "
            f"{('batch', *shape)}, which makes {tokens} tokens. "
            "Transform the model again with example_inputs of the new size; what came as an "
            "ExportedProgram, export it with them first."
        )
    return x


def batches(least: int, most: int | None) -> str:
    """For how many images a program is, in words."""
    if most is None:
        return f"{least} images or more"
    return f"{least} to {most} images" if least > 1 else f"{most} images or fewer"


def check_rows(x: Tensor, like: Tensor, name: str, other: str) -> Tensor:
    """Return ``x`` if it has as many rows as ``like``; else raise ``ShapeError``."""
    given: object = x
    if not isinstance(given, Tensor):
        raise ShapeError(
            f"{name} is {_told(given)}, but the model was captured with a tensor. Transform it "
            "again without that in its example inputs, for calls without it."
        )
    if x.shape[0] != like.shape[0]:
        raise ShapeError(
            f"{name} has {x.shape[0]} rows and {other} has {like.shape[0]}, but the model was "
            "captured with as many of both. Give each image its row (torch.Tensor.expand repeats "
            "one), or transform the model again with example_inputs of other numbers."
        )
    return x


def check_whole(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Return ``x`` if its shape is ``shape``, all of which is part of the program."""
    given: object = x
    if not isinstance(given, Tensor) or tuple(given.shape) != shape:
        found = tuple(given.shape) if isinstance(given, Tensor) else _told(given)
        raise ShapeError(
            f"{name} is {found}, but the model was captured with {shape}, and the program is for "
            "that shape alone. Transform the model again with example_inputs of the new one."
        )
    return x


@has_side_effect
def check_constant(value: object, captured: object, name: str) -> None:
    """Raise ``ShapeError`` if an argument that is part of the program is another one."""
    if type(value) is not type(captured) or value != captured:
        raise ShapeError(
            f"{name} is {_told(value)}, but the model was captured with {_told(captured)}, which "
            "is part of the program. Transform the model again with this value in its example "
            "inputs."
        )


@has_side_effect
def check_fixed(x: Tensor, captured: list[Any], name: str) -> None:
    """Raise ``ShapeError`` if an input holds other numbers than those that decided shapes.

    A compiled program asserts it where it runs. Under ``torch.func.vmap`` nothing is compared.
    """
    check_whole(x, tuple(torch.tensor(captured).shape), name)
    same = (x == torch.tensor(captured, dtype=x.dtype, device=x.device)).all()
    text = (
        f"the model was captured with {name} = {captured}, which is part of the program. "
        "Transform the model again with other numbers in its example inputs"
    )
    if torch.compiler.is_compiling() or is_traced(x):
        torch._assert_async(same, text)
    elif not torch._C._functorch.is_functorch_wrapped_tensor(x) and not x.is_meta and not same:
        raise ShapeError(f"{name} is {_told(x.tolist())}, but {text}.")


def _told(value: object) -> str:
    """A value in a line: of an array, its kind and shape.

    Raises:
        ConfigError: it is no value but a proxy of one, as torch.fx traces with.
    """
    if isinstance(value, torch.fx.Proxy):
        raise ConfigError(
            "What tome_fx has made is a graph already and is not traced by torch.fx again. Trace "
            "the model, or cut it (torchvision's create_feature_extractor), and transform that."
        )
    if hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    text = _SHORT.repr(value)
    return text if len(text) < 200 else f"a {type(value).__name__}"


def is_traced(x: Tensor) -> bool:
    """Are its numbers those of a program to be, which are asserted where it runs?"""
    return isinstance(x, FakeTensor) or torch._C._len_torch_dispatch_stack() > 0
