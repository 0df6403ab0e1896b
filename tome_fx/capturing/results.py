"""What a model returns: structures that a program can take apart and put together again."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example
from tome_fx.capturing.running import run_model
from tome_fx.errors import CaptureError

# What an attribute beside items may be.
_SIMPLE = (Tensor, type(None), bool, int, float, str)
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
    while unknown := _known_ways(pytree.tree_leaves(result)):
        for cls, register in unknown.items():
            register(cls)
        found = True
    return found


def _known_ways(leaves: list[Any]) -> dict[type, Callable[[Any], None]]:
    """How to tell torch of what it does not know, by class: all of each must be such."""
    data = {type(leaf) for leaf in leaves if _is_dataclass(leaf)}
    dicts = [leaf for leaf in leaves if isinstance(leaf, dict)]
    other = {type(leaf) for leaf in dicts if not _is_plain_dict(leaf)}
    return {
        **dict.fromkeys(data, torch.export.register_dataclass),
        **dict.fromkeys({type(leaf) for leaf in dicts} - other - data, _register_dict),
    }


def _register_dict(cls: type[dict[Any, Any]]) -> None:
    """Let torch take dicts of a class apart, and make them again of a plain one.

    What else they have as attributes goes with their keys, and tensors with their values.
    """

    def parts(value: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
        beside = _beside(value)
        held = [name for name, own in beside.items() if isinstance(own, Tensor)]
        children = [*value.values(), *(beside.pop(name) for name in held)]
        return children, [[*value], held, beside]

    def again(children: Iterable[Any], context: Any) -> dict[Any, Any]:
        (names, held, beside), values = context, [*children]
        items = dict(zip(names, values[: len(names)], strict=True))
        made = cls(items)
        for name, value in items.items():
            dict.__setitem__(made, name, value)  # the class may have made others of dicts in it
        for name, value in (*zip(held, values[len(names) :], strict=True), *beside.items()):
            object.__setattr__(made, name, value)
        return made

    def with_keys(value: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
        children, context = parts(value)
        keys = [*map(pytree.MappingKey, context[0]), *map(pytree.GetAttrKey, context[1])]
        return [*zip(keys, children, strict=True)], context

    pytree.register_pytree_node(
        cls,
        parts,
        again,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=with_keys,
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


def _is_plain_dict(leaf: dict[Any, Any]) -> bool:
    """Is it one that is made of a plain dict, with no more than items and plain attributes?"""
    cls = type(leaf)
    slots = any(vars(own).get("__slots__") for own in cls.__mro__)
    if slots or isinstance(leaf, defaultdict):
        return False
    try:
        again = cls(dict(leaf))
        values = zip(leaf.values(), again.values(), strict=True)
        alike = all(one is other or isinstance(one, dict) for one, other in values)
        simple = all(isinstance(value, _SIMPLE) for value in _beside(leaf).values())
        return [*again] == [*leaf] and alike and simple
    except Exception:  # one that wants more
        return False


def _beside(value: dict[Any, Any]) -> dict[str, Any]:
    """The attributes of a dict, but for those that are its items."""
    own = vars(value).items()
    return {name: held for name, held in own if name not in value or value[name] is not held}


def _is_dataclass(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
