"""Values of frames that have groups of their own, brought to where frames are images, and back.

[B, F3*S0.0:16, C]  ->  [B*F3, S0.0:16, C]  ->  [B*F3, S0.1:12, C]  ->  [B, F3*S0.1:12, C]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Factor,
    Frames,
    Origin,
    TensorType,
    batch_axis,
    count,
    extent,
    has_batch,
    has_stream,
    is_uniform,
    lifted_shape,
)
from tome_fx.graph.frames import Per, as_images, frames_in, frames_like, frames_of, per_of
from tome_fx.graph.regroup import reshape_sizes
from tome_fx.graph.single import of_one
from tome_fx.graph.unify import named
from tome_fx.lifting.levels import Levels

aten = torch.ops.aten


class Emits(Protocol):
    """What appends calls to a graph."""

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node: ...


class Coerces(Emits, Protocol):
    """What appends coercions to a graph, and knows the levels."""

    levels: Levels

    def of_images(self, node: Node) -> Node: ...

    def coerce(
        self, node: Node, have: TensorType, want: TensorType, table: bool = False
    ) -> Node: ...


def by_frame(coercer: Coerces, node: Node, have: TensorType, want: TensorType, table: bool) -> Node:
    """``node`` of type ``have`` as type ``want``, of which one has frames."""
    if have == want:
        return node
    if batch_axis(have) is batch_axis(want) is None:  # of the one image of a program
        node = coercer.coerce(coercer.of_images(node), of_one(have), of_one(want), table)
        return coercer.emit(aten.squeeze.dims, node, [0])
    per = per_of(want) or per_of(have)
    if batch_axis(have) is None and _varies(have, want):
        node, have = _for_images(coercer, node, have, want)
    if batch_axis(have) is not None:
        if have.rank == want.rank:
            pairs = zip(have.axes, want.axes, strict=True)
            have = TensorType(tuple(_named(axis, goal) for axis, goal in pairs))
        if any(sum(axis.count(f) for axis in have.axes) > 1 for f in frames_in(per)):
            return _axis_by_axis(coercer, node, have, want, table)
        node, have = to_images(coercer, node, have, per)
    node = coercer.coerce(node, have, as_images(want, per), table)
    return to_frames(coercer, node, want, per)


def _axis_by_axis(
    coercer: Coerces, node: Node, have: TensorType, want: TensorType, table: bool
) -> Node:
    """The same of pairs of tokens of all frames: an axis that has its turn has the frames."""
    axes = list(have.axes)
    for place, goal in enumerate(want.axes):
        if axes[place] == goal:
            continue
        others = [
            (Atom(count(axis), Origin("unknown", "pairs", (i,))),)
            if has_stream(axis) and i != place
            else axis
            for i, axis in enumerate(axes)
        ]
        now, then = (
            TensorType((*others[:place], axis, *others[place + 1 :]))
            for axis in (axes[place], goal)
        )
        node = coercer.coerce(node, now, then, table)
        axes[place] = goal
    return node


def _named(axis: Axis, goal: Axis) -> Axis:
    return axis if is_uniform(axis) else named(frames_like(axis, goal), goal)


def _varies(have: TensorType, want: TensorType) -> bool:
    """Has a table other values for each frame?"""
    pairs = zip(reversed(have.axes), reversed(want.axes), strict=False)
    return any(
        extent(own) > 1 and not is_uniform(own) and any(isinstance(f, Frames) for f in goal)
        for own, goal in pairs
        if not has_batch(goal)
    )


def _for_images(
    coercer: Coerces, node: Node, have: TensorType, want: TensorType
) -> tuple[Node, TensorType]:
    """A table with an axis of images, in the rank of ``want``."""
    stream = next(stream for stream in want.streams if stream.level)
    slots = coercer.levels.assignment(stream.id, stream.level)
    like = frame_by_frame(coercer, slots, stream.per, stream.extent)
    place = batch_axis(want)
    assert place is not None, "a merged type has a batch axis"
    axes = [*(() for _ in range(want.rank - have.rank)), *have.axes]
    counts = [count(axis) for axis in axes]
    node = coercer.emit(ops.for_images, node, like)
    node = coercer.emit(aten.reshape.default, node, [-1, *counts[:place], *counts[place + 1 :]])
    axes[place] = tuple(factor for factor in want.axes[place] if isinstance(factor, Batch))
    return coercer.emit(aten.movedim.int, node, 0, place), TensorType(tuple(axes))


def frame_by_frame(coercer: Emits, rows: Node, per: Axis, tokens: int) -> Node:
    """``[R, N]``, a row for each plan, as ``[B, F, N]``; all frames on one axis."""
    at = next(i for i, factor in enumerate(per) if isinstance(factor, Batch))
    counts = [math.prod(f.extent for f in side) for side in (per[:at], per[at + 1 :])]
    wide = coercer.emit(aten.reshape.default, rows, [counts[0], -1, counts[1], tokens])
    wide = coercer.emit(aten.transpose.int, wide, 0, 1)
    return coercer.emit(aten.flatten.using_ints, wide, 1, 2)


def to_images(coercer: Emits, node: Node, type_: TensorType, per: Per) -> tuple[Node, TensorType]:
    """``node`` with the frames of ``per`` as images, and its type.

    What has no frames is the same for each.
    """
    goal = as_images(type_, per)
    held = set(itertools.chain.from_iterable(type_.axes))
    absent = [frame for frame in frames_in(per) if frame not in held]
    if not absent and _in_batch(type_, per):
        return node, goal
    flat, order = _order(type_, per)
    sizes = reshape_sizes(flat)
    if absent or order != sorted(order):
        kept = sizes[: len(flat) - len(absent)]
        node = coercer.emit(aten.reshape.default, node, [*kept, *(1 for _ in absent)])
        if absent:
            wide = [*(-1 for _ in kept), *(frame.extent for frame in absent)]
            node = coercer.emit(aten.expand.default, node, wide)
        node = coercer.emit(aten.permute.default, node, order)
    return coercer.emit(aten.reshape.default, node, lifted_shape(goal)), goal


def to_frames(coercer: Emits, node: Node, type_: TensorType, per: Per) -> Node:
    """The reverse, to ``type_``."""
    if _in_batch(type_, per):
        return node
    flat, order = _order(type_, per)
    if order != sorted(order):
        sizes = reshape_sizes(flat)
        node = coercer.emit(aten.reshape.default, node, [sizes[i] for i in order])
        node = coercer.emit(aten.permute.default, node, [order.index(i) for i in range(len(flat))])
    return coercer.emit(aten.reshape.default, node, lifted_shape(type_))


def sizes_type(type_: TensorType, place: int) -> TensorType:
    """What group sizes along ``place`` are: no more than images, frames and tokens."""
    frames = [f for f in frames_of(type_) if f not in type_.axes[place]]
    axes = [
        axis if i == place or has_batch(axis) else tuple(f for f in axis if f in frames)
        for i, axis in enumerate(type_.axes)
    ]
    return TensorType(tuple(axes))


def _in_batch(type_: TensorType, per: Per) -> bool:
    """Do the frames stand beside the images on one axis, in order?"""
    axis = next(axis for axis in type_.axes if has_batch(axis))
    starts = range(len(axis) - len(per) + 1)
    return any(axis[start : start + len(per)] == per for start in starts)


def _order(type_: TensorType, per: Per) -> tuple[list[Factor], list[int]]:
    """All factors, absent frames last, and their order with those of ``per`` side by side."""
    flat: list[Factor] = [factor for axis in type_.axes for factor in axis]
    flat += [frame for frame in frames_in(per) if frame not in flat]
    frames = frames_in(per)
    order = [i for i, factor in enumerate(flat) if factor not in frames]
    at = next(i for i, place in enumerate(order) if isinstance(flat[place], Batch))
    order[at : at + 1] = [flat.index(factor) for factor in per]
    return flat, order
