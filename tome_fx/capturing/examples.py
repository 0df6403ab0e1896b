"""Example inputs: given, or read from what the model says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.undone import WritesUndone
from tome_fx.errors import InputError
from tome_fx.graph.insides import is_made_of_others

# Images that are run: a batch of one may be a special case.
FEW = 2
_ASK = (
    "Pass one example, for instance "
    "tome_fx.transform(model, example_inputs=(torch.randn(2, 3, 224, 224),))."
)
# For nested ones.
_SEVERAL = "Images of several sizes are padded, with a mask, or in one row with their lengths. "


@dataclass(frozen=True)
class Example:
    """Inputs to capture with; ``batch`` is the size of their first axis, 0 if that is no batch.

    A batch of 1 would be taken for a constant, so one image is given twice; ``single`` is what it
    was, for a model whose code fixes the batch.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    batch: int
    single: Example | None = None

    @property
    def leaves(self) -> list[Any]:
        """All that is given, by position and by name, out of lists and dicts."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    def sized(self, batch: int | None) -> Example:
        """What a program of a fixed batch was captured with; None for one of any batch."""
        single = self.single
        return single if single is not None and batch == single.batch else self

    def has_rows(self, value: Any) -> bool:
        """Is it a tensor with a row for each image?"""
        return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.batch

    @cached_property
    def few(self) -> Example:
        """Its first images, the same object each time."""
        return self.first(FEW) if self.batch > FEW else self

    def first(self, count: int) -> Example:
        """The first ``count`` of its images."""

        def few(value: Tensor) -> Tensor:
            return value[:count] if self.has_rows(value) else value

        args, kwargs = pytree.tree_map_only(Tensor, few, (self.args, dict(self.kwargs)))
        return Example(args, kwargs, count)


def given_example(inputs: Any, kwargs: Mapping[str, Any] | None) -> Example | None:
    """The example inputs that the user gave, None if none.

    Raises:
        InputError: they hold no image.
    """
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"example_kwargs={kwargs!r} is no dict of inputs by name. {_ASK}")
    if inputs is None and not kwargs:
        return None
    return _doubled(_as_tuple(inputs), dict(kwargs or {}))


def inferred_examples(model: nn.Module) -> Iterator[Example]:
    """Example inputs by what the model says of itself, the most likely first."""
    for shape in dict.fromkeys(_candidates(model)):
        yield Example((_image(model, shape),), {}, 2)


def none_accepted(tried: list[str]) -> InputError:
    """The error for a model whose inputs cannot be inferred; ``tried`` says what was."""
    found = f" Tried {'; '.join(tried)}." if tried else ""
    return InputError(
        f"No example inputs were given and none can be inferred.{found} {_ASK} For a part of a "
        "larger model, example_call=lambda: whole(**inputs) takes what that gives it."
    )


def rejection(model: nn.Module, example: Example) -> str | None:
    """Why the model itself does not run on the example; None if it does."""
    try:
        run_apart(model, example)
    except Exception as error:
        text = str(error).strip()
        return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    return None


def away(model: nn.Module) -> str | None:
    """What to do about weights that a model which runs does not hold itself; None if it does."""
    names = [name for name, weight in model.named_parameters() if weight.is_meta]
    if not names:
        return None
    return (
        f"{len(names)} of its weights, {names[0]!r} among them, are on the meta device, and yet it "
        "runs: something brings their values for each call, as accelerate's offloading does "
        "(cpu_offload; a device_map with 'cpu' or 'disk'). Take that off for the transform "
        "(accelerate.hooks.remove_hook_from_module(model, recurse=True)), and offload the result "
        "instead if it has to be, whole: preload_module_classes=['ToMeModule']."
    )


def run_apart(model: nn.Module, example: Example, gradients: bool = False) -> Any:
    """The model's result for the example; the run leaves it and the random state as they were.

    Runs for real: under fake tensors a model that caches what it computes would keep fakes.
    Buffers and inputs that the run changes are copies, and so are weights in training: a teacher
    that follows its student is made of them. In evaluation, where few write, writes are undone.
    """
    state: dict[str, Tensor] = dict(model.named_parameters())
    undone: AbstractContextManager[Any] = WritesUndone([] if model.training else state.values())
    if model.training:
        state = {name: _copied(value) for name, value in state.items()}
    state |= {name: value.clone() for name, value in model.named_buffers()}
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (example.args, dict(example.kwargs)))
    with torch.set_grad_enabled(gradients), draws_undone(state.values()), undone:
        return torch.func.functional_call(model, state, args, kwargs)


def _copied(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone(), weight.requires_grad)


def draws_undone(tensors: Iterable[Any]) -> AbstractContextManager[None]:
    """Within, random numbers are drawn as ever, on the devices of ``tensors`` too; then undone."""
    found = {value.device for value in tensors if isinstance(value, Tensor)}
    return torch.random.fork_rng(devices=[d for d in found if d.type == "cuda"])


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    if inputs is None:
        return ()
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _doubled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
    tensors = [
        leaf
        for leaf in pytree.tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and leaf.dim()
    ]
    if not tensors:
        raise InputError(f"The example inputs hold no tensor with a batch axis. {_ASK}")
    for made in tensors:
        if not (made.is_nested or is_made_of_others(made)):
            continue
        what = "a nested tensor" if made.is_nested else f"of {type(made).__name__}"
        raise InputError(
            f"An example input is {what}, whose values are in other tensors, so "
            f"that no axis of it is one of images. Pass a plain tensor. {_SEVERAL * made.is_nested}"
            f"{_ASK}"
        )
    args, kwargs = pytree.tree_map_only(Tensor, _apart(), (args, kwargs))
    batch = _images_of(tensors).shape[0]
    if batch == 0:
        raise InputError(f"The example inputs hold no image: the batch is 0. {_ASK}")
    if batch > 1:
        return Example(args, kwargs, batch)

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if value.dim() and value.shape[0] == 1 else value

    doubled = pytree.tree_map_only(Tensor, twice, (args, kwargs))
    return Example(doubled[0], doubled[1], 2, Example(args, kwargs, 1))


def _images_of(tensors: list[Tensor]) -> Tensor:
    """The first, or the first floating one with more axes where that holds ids of several texts.

    Texts may stand before images, and be as many as they like; one row may be the grid of patches.
    """
    first = tensors[0]
    if first.is_floating_point() or first.dim() < 2 or first.shape[0] < 2:
        return first
    others = (one for one in tensors if one.is_floating_point() and one.dim() > first.dim())
    return next(others, first)


def _apart() -> Callable[[Tensor], Tensor]:
    """Each value as an ordinary one of its own, without gaps in memory.

    Tracing tells inputs apart by the object: one that is given twice would be one input. Of strides
    that are no product of sizes it asks whether a size is another, which would fix the batch.
    """
    seen: set[int] = set()

    def own(value: Tensor) -> Tensor:
        strided = value.layout is torch.strided
        dense = not strided or torch.empty_like(value).stride() == value.stride()
        if id(value) not in seen and not value.is_inference() and dense:
            seen.add(id(value))
            return value
        with torch.inference_mode(False):
            return value.detach().clone()

    return own


def _candidates(model: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Image shapes that the model's own metadata names, the most specific first."""
    channels = _channels(model)
    for module in model.modules():
        for name in ("img_size", "image_size"):
            size = _pair(getattr(module, name, None))
            if size is not None:
                yield (channels, *size)
    config = getattr(model, "config", None)
    for part in (config, getattr(config, "vision_config", None)):
        size = _pair(getattr(part, "image_size", None))
        if size is not None:
            yield (getattr(part, "num_channels", channels), *size)
    for name in ("pretrained_cfg", "default_cfg"):
        declared = getattr(model, name, None)
        shape = declared.get("input_size") if isinstance(declared, Mapping) else None
        if shape is not None and len(shape) == 3:
            yield (int(shape[0]), int(shape[1]), int(shape[2]))


def _channels(model: nn.Module) -> int:
    """The input channels of the first convolution, 3 if there is none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return (int(value[0]), int(value[1])) if all(isinstance(v, int) for v in value) else None
    return None


def _image(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = weight.dtype if weight is not None else torch.float32
    device = weight.device if weight is not None else torch.device("cpu")
    with torch.inference_mode(False):  # what is made in it cannot be traced for training later
        if device.type == "meta":
            return torch.zeros((2, *shape), dtype=dtype, device=device)
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.rand((2, *shape), generator=generator, device="cpu")
        return noise.to(device, dtype)
