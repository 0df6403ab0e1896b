"""Tables: data of places that no image has a part in, brought to merged tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Batch,
    Stream,
    TensorType,
    batch_axis,
    extent,
    has_stream,
    streams_of_axis,
    unmerged,
)
from tome_fx.graph.ends import ends_of
from tome_fx.lifting.folding import heads_around
from tome_fx.lifting.levels import Levels, Spot, changed


class Coerces(Protocol):
    """What appends coercions to a graph, and knows the levels."""

    levels: Levels

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node: ...

    def table(self, node: Node, type_: TensorType, at: Spot, goal: Stream) -> Node: ...

    def by_size(self, node: Node, type_: TensorType, at: Spot, op: Callable[..., Any]) -> Node: ...


def of_constant(coercer: Coerces, node: Node, have: TensorType, want: TensorType) -> Node:
    """A value without a batch: the representative's rows, and a batch axis at its place."""
    shift = want.rank - have.rank
    batch = batch_axis(want)
    assert batch is not None, "a merged type has a batch axis"
    lead, now = 0, _of_images(have, want)
    for place in range(have.rank):
        left = TensorType((unmerged(want.axes[place + shift]),))  # as far as rows were taken
        for which, stream in enumerate(streams_of_axis(want.axes[place + shift])):
            if not stream.level:
                continue
            if len(want.axes[place + shift]) > 1:  # tokens of all frames, say
                if not lead:
                    slots = coercer.levels.assignment(stream.id, stream.level)
                    node, lead = coercer.emit(ops.for_images, node, slots), 1
                node = coercer.table(node, now, (place + 1, which), stream)
                now = changed(now, (place + 1, which), stream)[0]
                continue
            front, back = ends_of(left.axes[0], which)
            ends = {"front": front, "back": back} if front or back else {}
            if stream.extensive:
                slots = coercer.levels.assignment(stream.id, stream.level)
                node = node if lead else coercer.emit(ops.for_images, node, slots)
                node = coercer.emit(ops.total, node, slots, stream.count, place + 1, **ends)
            else:
                index = coercer.levels.origin(stream.id, stream.level)
                target = ops.take if lead else ops.take_constant
                node = coercer.emit(target, node, index, place + lead, **ends)
            left, lead = changed(left, (0, which), stream)[0], 1
            now = changed(now, (place + 1, which), stream)[0]
    outer, inner = heads_around(want.axes[batch])
    # [B, own axes] -> the batch at its place, ones for the axes that the value lacks.
    heads = [inner] if inner > 1 else []
    extra = (heads, outer) if outer > 1 else (heads,) if heads else ()
    node = coercer.emit(ops.place_batch, node, want.rank, batch, *extra)
    for place, axis in enumerate(want.axes[:shift]):
        # What it has no axis for is the same for all members.
        for which, stream in enumerate(streams_of_axis(axis)):
            if stream.extensive:
                node = coercer.by_size(node, want, (place, which), ops.scale_by_size)
    return node


def _of_images(have: TensorType, want: TensorType) -> TensorType:
    """A table with an axis of images in front, and all tokens of ``want`` for its rows."""
    batch = batch_axis(want)
    assert batch is not None, "a merged type has a batch axis"
    images = tuple(factor for factor in want.axes[batch] if isinstance(factor, Batch))
    wanted = want.axes[want.rank - have.rank :]
    rows = (
        unmerged(goal) if has_stream(goal) and extent(own) == extent(goal) else own
        for own, goal in zip(have.axes, wanted, strict=True)
    )
    return TensorType((images, *rows))
