"""What a model returns: structures that a program can take apart and put together again."""

from __future__ import annotations

import dataclasses
import operator
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
    """Tell torch of dataclasses and dicts that a model returns, as their author could have done.

    Dicts of a class of their own, that is: those whose values may be read as attributes, say.
    Torch keeps that for the process, and the program needs it at each call. False if there is none
    that it does not know, or if the model does not run.
    """
    try:
        result = run_model(model, example)
    except Exception:
        return False
    found = False
    while unknown := {type(leaf): leaf for leaf in pytree.tree_leaves(result) if _is_known(leaf)}:
        for cls, leaf in unknown.items():
            if _is_dataclass(leaf):
                torch.export.register_dataclass(cls)
            else:
                _register_dict(cls)
        found = True
    return found


def _register_dict(cls: type[dict[Any, Any]]) -> None:
    """Let torch take dicts of a class apart, and make them again of a plain one."""
    pytree.register_pytree_node(
        cls,
        lambda value: ([*value.values()], [*value]),
        lambda values, keys: cls(dict(zip(keys, values, strict=True))),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda value: (
            [(pytree.MappingKey(key), own) for key, own in value.items()],
            [*value],
        ),
    )


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


def _is_known(leaf: Any) -> bool:
    """Is it of a class whose values are all that it holds, as far as can be seen?"""
    return _is_dataclass(leaf) or _is_plain_dict(leaf)


def _is_plain_dict(leaf: Any) -> bool:
    """Is it a dict of a class of its own that is made of a plain one, with no more than items?"""
    if not isinstance(leaf, dict):
        return False
    try:
        return _same(leaf, type(leaf)(dict(leaf)))
    except Exception:  # one that wants more, or holds what cannot be compared
        return False


def _same(one: Any, other: Any) -> bool:
    """Are both one value, or dicts with the same in them and beside their items?"""
    if not isinstance(one, dict) or type(one) is not type(other):
        return one is other
    besides = ({n: v for n, v in vars(d).items() if n not in d} for d in (one, other))
    values = zip(one.values(), other.values(), strict=True)
    return [*one] == [*other] and all(_same(*pair) for pair in values) and operator.eq(*besides)


def _is_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
