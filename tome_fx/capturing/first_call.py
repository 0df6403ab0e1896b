"""Example inputs from a call of what the model is a part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.errors import InputError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def first_call(model: nn.Module, call: Callable[[], object]) -> Inputs:
    """What the first call of ``model`` within ``call()`` gives it, by position and by name.

    ``call`` runs to its end, without gradients and without compiled code. Tensors are copies.

    Raises:
        InputError: ``call`` fails, does not call the model, or calls it in a way that no call
            outside of it can repeat: under a transform of ``torch.func``, or with what autocast
            made.
    """
    found: list[Inputs] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            _refuse_wrapped(tensors)
            _refuse_cast(model, tensors)
            found.append(pytree.tree_map_only(Tensor, _copied, (args, kwargs)))

    # In front of the model's own hooks, which run again on what is given here.
    handle = model.register_forward_pre_hook(watch, prepend=True, with_kwargs=True)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call()
    except InputError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise InputError(
            f"example_call fails: {text}. It takes no arguments, runs without gradients, and calls "
            "what the model is a part of, for instance example_call=lambda: whole(**inputs)."
        ) from error
    finally:
        handle.remove()
    if not found:
        raise InputError(
            f"example_call does not call this {type(model).__name__}: it runs another one (a copy, "
            "or what took its place), or a method of it in place of the model. Give what it calls, "
            "or example_inputs."
        )
    return found[0]


def _copied(value: Tensor) -> Tensor:
    """Apart from what the call goes on to do with it, and no tensor of inference alone."""
    with torch.inference_mode(False):
        return value.detach().clone()


def _refuse_wrapped(tensors: list[Tensor]) -> None:
    if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
        raise InputError(
            "example_call calls the model under a transform of torch.func (vmap, grad), whose "
            "tensors mean nothing outside. Give a call without it, or example_inputs."
        )


def _refuse_cast(model: nn.Module, tensors: list[Tensor]) -> None:
    """Autocast hands on what it made, which the weights do not take by themselves."""
    weight = next((weight for weight in model.parameters() if weight.is_floating_point()), None)
    if weight is None or not torch.is_autocast_enabled(weight.device.type):
        return
    cast = torch.get_autocast_dtype(weight.device.type)
    if cast != weight.dtype and any(tensor.dtype == cast for tensor in tensors):
        raise InputError(
            f"example_call runs within autocast, which gives the model {cast}; its weights are "
            f"{weight.dtype}. Leave autocast out of example_call: the result runs within it too."
        )
