"""What a function writes to, and whether it draws random numbers, by its name or its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

_IN_PLACE = frozenset(
    {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__",
     "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
)  # fmt: skip
# They write to the statistics that they are given.
_NORMS = ("batch_norm", "instance_norm")
_DRAW = frozenset(
    {"bernoulli", "cauchy", "dropout", "exponential", "geometric", "log_normal", "multinomial",
     "normal", "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like",
     "random", "randperm", "rrelu", "uniform"}
)  # fmt: skip


def written_by(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """What a function or a method writes to: its first argument, or ``out``, or as it says."""
    name = _name(func)
    own = name.endswith("_") and not name.endswith("__")
    goals = [args[:1]] if own or name in _IN_PLACE or f"__{name}__" in _IN_PLACE else []
    if any(norm in name for norm in _NORMS) or kwargs.get("inplace") is True or _mutates(func):
        goals.append((args, kwargs))
    return [g for g in pytree.tree_leaves([*goals, kwargs.get("out")]) if g is not None]


def draws(func: Any) -> bool:
    """Does a function draw random numbers, as far as its name tells?"""
    name = _name(func).rstrip("_")
    return name in _DRAW or name.endswith("dropout")


def _name(func: Any) -> str:
    name: str = func if isinstance(func, str) else getattr(func, "__name__", "")
    return name.partition(".")[0]  # of an op: copy_.default


def _mutates(func: Any) -> bool:
    """Is it an op that says of itself that it writes?"""
    if isinstance(func, torch._ops.OpOverloadPacket):
        names: list[str] = func.overloads()  # type: ignore[no-untyped-call]
        return any(getattr(func, name)._schema.is_mutable for name in names)
    return isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable
