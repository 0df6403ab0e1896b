"""Coercions: bring a value from the type it has to the type that an op wants.

``merge`` goes to a deeper level (mean of members, sum of totals), ``unmerge`` back, and members
become totals and the reverse by the group sizes, each once per value and type. A table (data of
places, which no image has a part in) takes the row of each group's representative, and a batch axis
if it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    Batch,
    Stream,
    TensorType,
    batch_axis,
    count,
    extent,
    factor_count,
    has_batch,
    has_stream,
    holds,
    intensive,
    is_merged,
    is_merged_axis,
    is_uniform,
    pieces,
    streams_of_axis,
)
from tome_fx.graph.ends import ends_of
from tome_fx.graph.frames import as_images, per_of
from tome_fx.graph.grids import fused, has_grid
from tome_fx.graph.provenance import origin_of
from tome_fx.graph.regroup import reshape_sizes
from tome_fx.graph.single import of_one
from tome_fx.graph.unify import is_written_out, named
from tome_fx.lifting.folding import folded_size, heads_around, is_folded_piece, size_parts
from tome_fx.lifting.frames import by_frame, sizes_type, to_frames
from tome_fx.lifting.gridded import gridded
from tome_fx.lifting.levels import Levels, Spot, changed
from tome_fx.lifting.tables import of_constant
from tome_fx.lifting.together import Act, together

aten = torch.ops.aten
_Op: TypeAlias = Callable[..., Any]


@dataclass
class Coercer:
    """Emits coercions at the end of ``graph``; the one place that knows the levels of a stream."""

    graph: Graph
    provenance: Node | None = None
    _done: dict[tuple[Node, TensorType, TensorType], Node] = field(default_factory=dict)
    _framed: dict[Node, Node] = field(default_factory=dict)
    _sizes: dict[tuple[TensorType, int, int | None], Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.levels = Levels(self.emit)

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Append a call that carries the module path and source line of the node being lifted."""
        node = self.graph.call_function(target, args, kwargs)
        if self.provenance is not None:
            node.meta.update(origin_of(self.provenance))
        return node

    def coerce(self, node: Node, have: TensorType, want: TensorType, table: bool = False) -> Node:
        """``node`` of type ``have`` as type ``want``; whether it is a ``table``, see above."""
        key = node, have, want
        if key not in self._done:
            self._done[key] = self._coerce(node, have, want, table)
        return self._done[key]

    def _coerce(self, node: Node, have: TensorType, want: TensorType, table: bool) -> Node:
        if per_of(want) or per_of(have):
            return by_frame(self, node, have, want, table)
        node, have = self._thinned(node, have, want)
        if have.rank == want.rank:
            have = self._named(have, want)
        if batch_axis(have) is batch_axis(want) is None:
            if have.streams == want.streams:
                return node
            node = self._coerce(self.of_images(node), of_one(have), of_one(want), table)
            return self.emit(aten.squeeze.dims, node, [0])
        if has_grid(want):
            return gridded(self, node, have, want, table)
        if batch_axis(have) is None and is_merged(want):
            return of_constant(self, node, have, want)
        for place, target in enumerate(want.axes):
            node, have = together(self, node, have, place, target, table)
            for which, goal in enumerate(streams_of_axis(target)):
                node, have = self._bring(node, have, (place, which), goal, table)
        return node

    def of_images(self, node: Node) -> Node:
        """A value of the one image of a program with an axis of images in front."""
        if node not in self._framed:
            self._framed[node] = self.emit(aten.unsqueeze.default, node, 0)
        return self._framed[node]

    def _thinned(self, node: Node, have: TensorType, want: TensorType) -> tuple[Node, TensorType]:
        """As many positions as are asked for, of axes with the same value at all of them."""
        axes = list(have.axes)
        several = batch_axis(have) is not None and not has_grid(want)
        own = want.axes[want.rank - have.rank :]
        for place, (axis, goal) in enumerate(zip(have.axes, own, strict=True)):
            if is_uniform(axis) and extent(goal) == 1:
                node, axes[place] = self.emit(aten.slice.Tensor, node, place, 0, 1), ()
            elif is_uniform(axis) and is_merged_axis(goal) and several:
                node = self.emit(aten.slice.Tensor, node, place, 0, count(goal))
                axes[place] = intensive(goal)
            elif is_written_out(axis, goal):
                node = self._fewer_copies(node, TensorType(tuple(axes)), place, goal)
                axes[place] = intensive(goal)
        return node, TensorType(tuple(axes))

    def _fewer_copies(self, node: Node, type_: TensorType, place: int, goal: Axis) -> Node:
        """As many copies of each image's value as there are tokens beside the images."""
        axis = type_.axes[place]
        if count(axis) == count(goal):
            return node
        at = next(i for i, factor in enumerate(goal) if has_stream((factor,)))
        sizes = [-1 if has_batch(own) else count(own) for own in type_.axes]
        before, behind = sizes[:place], sizes[place + 1 :]
        node = self.emit(aten.reshape.default, node, [*before, *reshape_sizes(axis), *behind])
        node = self.emit(aten.slice.Tensor, node, place + at, 0, factor_count(goal[at]))
        return self.emit(aten.reshape.default, node, [*before, -1, *behind])

    def _named(self, have: TensorType, want: TensorType) -> TensorType:
        """``have`` with the tokens and images of ``want``, unmerged, where it has plain axes."""
        pairs = zip(have.axes, want.axes, strict=True)
        return TensorType(tuple(named(axis, target) for axis, target in pairs))

    def _bring(
        self, node: Node, have: TensorType, at: Spot, goal: Stream, table: bool
    ) -> tuple[Node, TensorType]:
        stream = list(streams_of_axis(have.axes[at[0]]))[at[1]]
        if table and goal.level and not stream.level:
            node = self.table(node, have, at, goal)
            have, stream = changed(have, at, goal)
        other = stream.level != goal.level
        back = other and self.levels.step(stream, goal.level) < stream.level
        if stream.extensive and (back or not goal.extensive):
            if stream.level:
                node = self.by_size(node, have, at, ops.divide_by_size)
            have, stream = changed(have, at, replace(stream, extensive=False))
        while stream.level != goal.level:
            step = self.levels.step(stream, goal.level)
            deeper = step > stream.level
            step = goal.level if deeper else step
            act = self._merge if deeper else self._unmerge
            node = act(node, have, at, stream, step)
            have, stream = changed(have, at, self.levels.at(stream, step))
        if goal.extensive and not stream.extensive:
            have, wide = changed(have, at, replace(stream, extensive=True))
            if wide.level:
                node = self.by_size(node, have, at, ops.scale_by_size)
        return node, have

    def table(self, node: Node, type_: TensorType, at: Spot, goal: Stream) -> Node:
        """The representative's rows of a table with an axis of images, or the sum of all rows."""
        if not goal.extensive:
            rows = ops.take, self.levels.origin(goal.id, goal.level)
            return self._rows(node, type_, at, goal, rows)
        slots = self.levels.assignment(goal.id, goal.level)

        def act(value: Node, dim: int, front: int, back: int) -> Node:
            ends = {"front": front, "back": back} if front or back else {}
            return self.emit(ops.total, value, slots, goal.count, dim, **ends)

        return self.on_tokens(node, type_, at, goal, goal.count, act)

    def _merge(self, node: Node, type_: TensorType, at: Spot, stream: Stream, goal: int) -> Node:
        plan = self.levels.plan_from(stream.id, stream.level, goal)
        sizes = [self.levels.size(stream.id, level) for level in (stream.level, goal)]

        def act(value: Node, dim: int, front: int, back: int) -> Node:
            ends = {"front": front, "back": back} if front or back else {}
            if stream.extensive:
                return self.emit(ops.merge_sum, value, plan, dim, **ends)
            return self.emit(ops.merge, value, plan, *sizes, dim, **ends)

        return self.on_tokens(node, type_, at, stream, self.levels.at(stream, goal).count, act)

    def _unmerge(self, node: Node, type_: TensorType, at: Spot, stream: Stream, goal: int) -> Node:
        index = self.levels.assignment(stream.id, stream.level, goal)
        return self._rows(node, type_, at, self.levels.at(stream, goal), (ops.unmerge, index))

    def _rows(
        self, node: Node, type_: TensorType, at: Spot, goal: Stream, rows: tuple[_Op, Node]
    ) -> Node:
        op, index = rows

        def act(value: Node, dim: int, front: int, back: int) -> Node:
            ends = {"front": front, "back": back} if front or back else {}
            return self.emit(op, value, index, dim, **ends)

        return self.on_tokens(node, type_, at, goal, goal.count, act)

    def by_size(self, node: Node, type_: TensorType, at: Spot, op: _Op) -> Node:
        """``op`` of a value and the group sizes along one of its streams, if any is not 1."""
        size = self.size_along(type_, *at)
        return node if size is None else self.emit(op, node, size)

    def size_along(self, type_: TensorType, place: int, which: int | None = None) -> Node | None:
        """Group sizes that broadcast against ``type_`` along ``place``; None if all are 1.

        ``which``: of this stream of the axis alone; the others count as 1.
        """
        type_ = fused(type_)
        found = list(streams_of_axis(type_.axes[place]))
        batch = batch_axis(type_)
        chosen = found if which is None else [found[which]]
        if not any(stream.level for stream in chosen):
            return None
        key = type_, place, which
        if key not in self._sizes:
            if batch is None:
                size = self.size_along(of_one(type_), place + 1, which)
                self._sizes[key] = self.emit(aten.squeeze.dims, size, [0])
            elif per_of(type_):
                own = sizes_type(type_, place)
                size = self.size_along(as_images(own, per_of(own)), place, which)
                assert size is not None, "tokens that have merged have sizes"
                self._sizes[key] = to_frames(self, size, own, per_of(own))
            elif len(type_.axes[place]) == 1 and batch != place:
                outer, inner = heads_around(type_.axes[batch])
                parts = size_parts(self, type_.axes[place][0], which)
                extra = () if outer * inner == 1 else (outer, inner)
                self._sizes[key] = self.emit(ops.along, parts, type_.rank, batch, place, *extra)
            else:
                self._sizes[key] = folded_size(self, type_, place, which)
        return self._sizes[key]

    def on_tokens(
        self,
        node: Node,
        type_: TensorType,
        spot: Spot,
        stream: Stream,
        left: int,
        act: Act,
    ) -> Node:
        """Run ``act`` on a value whose batch is axis 0 and whose tokens have an axis alone."""
        place, which = spot
        if is_folded_piece(type_.axes[place], which):
            return self._on_piece(node, type_, spot, stream, left, act)
        batch = batch_axis(type_)
        front, back = ends_of(type_.axes[place], which)
        if batch == 0 and len(type_.axes[0]) == 1 and len(type_.axes[place]) == 1:
            return act(node, place, front, back)
        flat = [factor for axis in type_.axes for factor in axis]
        at = next(i for i, f in enumerate(flat) if isinstance(f, Batch))
        start = sum(len(axis) for axis in type_.axes[:place])
        inner = next(start + i for i, f in enumerate(type_.axes[place]) if holds((f,), stream.id))
        order = [at, *(i for i in range(len(flat)) if i != at)]
        value = self.emit(aten.reshape.default, node, reshape_sizes(flat))
        value = self.emit(aten.permute.default, value, order)
        value = act(value, order.index(inner), front, back)
        value = self.emit(aten.permute.default, value, [order.index(i) for i in range(len(flat))])
        shape = [-1 if has_batch(axis) else count(axis) for axis in type_.axes]
        if not has_batch(type_.axes[place]):
            shape[place] = shape[place] // factor_count(flat[inner]) * (left + front + back)
        return self.emit(aten.reshape.default, value, shape)

    def _on_piece(
        self,
        node: Node,
        type_: TensorType,
        spot: Spot,
        stream: Stream,
        left: int,
        act: Act,
    ) -> Node:
        """The same for tokens that are a factor of a piece: it is cut out and joined again."""
        place, which = spot
        cut, start = [], 0
        for part in pieces(type_.axes[place][0]):
            piece = self.emit(aten.slice.Tensor, node, place, start, start + count(part))
            start += count(part)
            here = len(list(streams_of_axis(part)))
            if 0 <= which < here:
                inner = TensorType((*type_.axes[:place], part, *type_.axes[place + 1 :]))
                piece = self.on_tokens(piece, inner, (place, which), stream, left, act)
            which -= here
            cut.append(piece)
        return self.emit(aten.cat.default, cut, place)
