"""Coercions of tokens that stand on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.fx import Node

from tome_fx.graph.axes import Axis, TensorType, batch_axis, extent, lifted_shape, unmerged
from tome_fx.graph.grids import fused, grid_axis

aten = torch.ops.aten


class Coerces(Protocol):
    """What coerces tokens on one axis."""

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node: ...

    def coerce(
        self, node: Node, have: TensorType, want: TensorType, table: bool = False
    ) -> Node: ...


def gridded(coercer: Coerces, node: Node, have: TensorType, want: TensorType, table: bool) -> Node:
    """All tokens brought to the first axis of the grid, coerced there, and spread if unmerged."""
    goals = want.axes[want.rank - have.rank :]
    wide = TensorType(tuple(map(_widened, have.axes, goals)))
    if any(map(_is_wider, have.axes, wide.axes)):
        grown = map(_is_wider, have.axes, wide.axes)
        sizes = [extent(axis) if more else -1 for axis, more in zip(wide.axes, grown, strict=True)]
        node = coercer.emit(aten.expand.default, node, sizes)
    flat, goal = fused(wide), fused(want)
    if batch_axis(wide) is not None and flat == goal:
        return node
    node = _reshaped(coercer, node, wide, flat)
    return _reshaped(coercer, coercer.coerce(node, flat, goal, table), goal, want)


def _widened(axis: Axis, goal: Axis) -> Axis:
    """A plain axis that meets the axis of a grid: it is that axis, of unmerged tokens."""
    found = grid_axis(axis) is None and grid_axis(goal)
    return unmerged(goal) if found else axis


def _is_wider(before: Axis, after: Axis) -> bool:
    return extent(before) != extent(after)


def flattened(coercer: Coerces, node: Node, type_: TensorType) -> tuple[Node, TensorType]:
    """A value with all tokens of its grid on the first axis of it."""
    flat = fused(type_)
    return _reshaped(coercer, node, type_, flat), flat


def _reshaped(coercer: Coerces, node: Node, before: TensorType, after: TensorType) -> Node:
    shape = lifted_shape(after)
    return (
        node if shape == lifted_shape(before) else coercer.emit(aten.reshape.default, node, shape)
    )
