"""What a model returns: structures that a program can take apart and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example
from tome_fx.capturing.running import run_model
from tome_fx.errors import CaptureError

# What a result may hold beside containers.
PLAIN = (Tensor, type(None), bool, int, float, complex, str, torch.dtype, torch.device,
         torch.SymInt, torch.SymFloat, torch.SymBool)  # fmt: skip


def register_results(model: nn.Module, example: Example) -> bool:
    """Tell torch of the dataclasses that a model returns, as their author could have done.

    Torch keeps that for the process, and the program needs it at each call. False if there is none
    that it does not know, or if the model does not run.
    """
    try:
        result = run_model(model, example)
    except Exception:
        return False
    found = False
    while unknown := {type(leaf) for leaf in pytree.tree_leaves(result) if _is_dataclass(leaf)}:
        for cls in unknown:
            torch.export.register_dataclass(cls)
        found = True
    return found


def refuse_unknown(leaves: Iterable[Any]) -> None:
    """Raise CaptureError for what torch cannot look into: tensors in it would be constants."""
    for leaf in leaves:
        if not isinstance(leaf, PLAIN):
            name = type(leaf).__name__
            raise CaptureError(
                f"forward returns a {name}, which torch cannot take apart.",
                next_step="Return a tensor, tuple, list, dict or dataclass, or register the class "
                "with torch.utils._pytree.register_pytree_node.",
            )


def _is_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
