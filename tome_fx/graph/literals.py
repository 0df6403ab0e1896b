"""Values that a program makes of literals alone: ranges, truths about places, masks of ones.

They are followed on the CPU whatever device the program is for, where every device agrees on each
bit, and where all places have one value also through sizes that are not known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tome_fx.graph.calls import bind, calls, writes

_RANGES = ("aten.arange", "aten.zeros", "aten.ones", "aten.full")
_ONES = ("aten.ones", "aten.ones_like", "aten.new_ones")
_ZEROS = ("aten.zeros", "aten.zeros_like", "aten.new_zeros")
_FULL = ("aten.full", "aten.full_like", "aten.new_full")
_MOVES = ("aten.unsqueeze", "aten.squeeze", "aten.view", "aten.reshape", "aten.expand",
          "aten.transpose", "aten.permute")  # fmt: skip
# What computes nothing: floating values too are the same on all devices.
_COPIES = ("aten.to", "aten._to_copy", "aten.clone", "aten.where")
_TRUTHS = ("aten.__and__", "aten.__or__")  # of whole numbers too
_EXACT = (*_ONES, *_ZEROS, *_FULL, *_MOVES, *_COPIES)
# Larger tables than this are no masks of ones.
_FEW = 1 << 22


class Literals:
    """What is known of the nodes of a graph, which are read in their order."""

    def __init__(self) -> None:
        self._values: dict[Node, Tensor] = {}
        self._same: dict[Node, Tensor] = {}  # [1]

    def read(self, node: Node) -> None:
        """Follow one more node; one that is the same everywhere is written as ``full``."""
        value = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, Tensor):
            return
        if value.device.type != "cpu" and value.is_floating_point() and not calls(node, _EXACT):
            return
        found = self._whole(node, value)
        if found is None:
            same = self._one(node, value)
            if same is not None and same.dtype == value.dtype:
                self._same[node] = same
            return
        self._values[node] = found
        first = found.flatten()[:1]
        if found.numel() and _is_one(found, first):
            self._same[node] = first
            if node.all_input_nodes and found.numel() > 1:
                node.target = torch.ops.aten.full.default
                node.args = (list(found.shape), first.item())
                node.kwargs = {"dtype": value.dtype, "device": value.device}

    def of_all(self, node: Node) -> bool | int | float | None:
        """The number, or the truth, that each place of ``node`` has; None if that is not known."""
        same = self._same.get(node)
        return None if same is None else same.item()

    def _whole(self, node: Node, value: Tensor) -> Tensor | None:
        """All of a value whose size is known."""
        inputs = node.all_input_nodes
        if not all(isinstance(size, int) for size in value.shape) or value.numel() > _FEW:
            return None
        if not all(one in self._values for one in inputs):
            return None
        known = _is_followed(node) if inputs else calls(node, _RANGES)
        return _run(node, self._values) if known else None

    def _one(self, node: Node, value: Tensor) -> Tensor | None:
        """What each place of a value has."""
        if calls(node, (*_ONES, *_ZEROS, *_FULL)):
            number = bind(node)["fill_value"] if calls(node, _FULL) else calls(node, _ONES)
            return _filled(number, value.dtype)
        inputs = node.all_input_nodes
        if calls(node, _MOVES):
            return self._same.get(inputs[0])  # the others are sizes
        if not inputs or not _is_followed(node) or not all(one in self._same for one in inputs):
            return None
        # A tensor without axes promotes others less.
        ones = {one: self._same[one].reshape([1] * one.meta["val"].dim()) for one in inputs}
        result = _run(node, ones)
        return None if result is None else result.flatten()


def _is_followed(node: Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    tags = node.target.tags
    if writes(node) or torch.Tag.nondeterministic_seeded in tags:
        return False
    return torch.Tag.pointwise in tags or calls(node, (*_MOVES, *_COPIES, *_TRUTHS))


def _is_one(values: Tensor, first: Tensor) -> bool:
    """Are all values ``first``? A zero below zero is another one than that above."""
    signs = values.is_floating_point() and not bool((values.signbit() == first.signbit()).all())
    return bool((values == first).all()) and not signs


def _filled(number: object, dtype: torch.dtype) -> Tensor | None:
    """``[1]``; None of what is no number, or none of this dtype."""
    if not isinstance(number, (bool, int, float)):
        return None
    try:
        return torch.full([1], number, dtype=dtype, device="cpu")
    except (RuntimeError, ValueError):
        return None


def _run(node: Node, values: dict[Node, Tensor]) -> Tensor | None:
    """What the op makes of ``values``; None where the CPU does not have it."""
    given: Any = map_arg((node.args, node.kwargs), lambda one: values[one])
    args, kwargs = pytree.tree_map_only(torch.device, lambda _: torch.device("cpu"), given)
    kwargs = {name: value for name, value in dict(kwargs).items() if name != "pin_memory"}
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator,no-any-return]
    except (RuntimeError, TypeError, ValueError):
        return None
