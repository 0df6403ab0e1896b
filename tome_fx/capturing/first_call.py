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

    ``call`` runs to its end as it stands, without gradients, and what of it was compiled runs as
    it is written. Tensors are copies.

    Raises:
        InputError: ``call`` fails, or does not call the model.
    """
    found: list[Inputs] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(pytree.tree_map_only(Tensor, _copied, (args, kwargs)))

    # In front of the model's own hooks, which run again on what is given here.
    handle = model.register_forward_pre_hook(watch, prepend=True, with_kwargs=True)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            call()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise InputError(
            f"example_call fails: {text}. It takes no arguments and calls what the model is a part "
            "of, for instance example_call=lambda: whole(**inputs)."
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
