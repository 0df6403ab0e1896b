"""Several streams in one row, moved between levels by one op.

    [S0.0:64|S1.0:64|S2.0:32]  ->  [S0.1:60|S1.1:60|S2.1:30]

One by one, each of them would copy the whole row: windows and images packed in a row are many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    Concat,
    Stream,
    TensorType,
    count,
    extent,
    has_stream,
)
from tome_fx.graph.ends import ends_of
from tome_fx.lifting.folding import size_row
from tome_fx.lifting.levels import Levels, Spot

Act = Callable[[Node, int, int, int], Node]


class Moves(Protocol):
    """What knows the levels, emits ops, and runs them on tokens in any layout."""

    levels: Levels

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node: ...

    def on_tokens(
        self, node: Node, type_: TensorType, spot: Spot, stream: Stream, left: int, act: Act
    ) -> Node: ...


def together(
    coercer: Moves, node: Node, have: TensorType, place: int, target: Axis, table: bool
) -> tuple[Node, TensorType]:
    """``node`` with the streams on axis ``place`` as near to ``target`` as they go together."""
    while True:
        row = _row(have.axes[place], target)
        if row is None:
            return node, have
        steps = [_step(coercer, own, goal, table) for own, goal in row]
        moved = [axis for axis, _ in steps]
        kinds = {kind for _, kind in steps} - {""}
        if (
            sum(own != axis for (own, _), axis in zip(row, moved, strict=True)) < 2
            or len(kinds) > 1
        ):
            return node, have
        act = _act(coercer, [own for own, _ in row], moved, kinds.pop())
        axis: Axis = (Concat(tuple(moved)),)
        front, back = ends_of(have.axes[place])
        stream = next(f for part, _ in row for f in part if isinstance(f, Stream))
        left = count(axis) - front - back
        node = coercer.on_tokens(node, have, (place, 0), stream, left, act)
        have = TensorType((*have.axes[:place], axis, *have.axes[place + 1 :]))


def _row(axis: Axis, target: Axis) -> list[tuple[Axis, Axis]] | None:
    """The pieces of an axis with those they are to be, if these are member values of streams."""
    parts = [a[0].parts if len(a) == 1 and isinstance(a[0], Concat) else () for a in (axis, target)]
    if not parts[0] or len(parts[0]) != len(parts[1]):
        return None
    row = list(zip(*parts, strict=True))
    return row if all(_alike(own, goal) for own, goal in row) else None


def _alike(own: Axis, goal: Axis) -> bool:
    if not has_stream(own) and not has_stream(goal):
        return extent(own) == extent(goal)
    found = _streams(own, goal)
    ids = {stream.id for stream in found}
    return len(found) == 2 and len(ids) == 1 and not any(s.extensive for s in found)


def _streams(*pieces: Axis) -> list[Stream]:
    """The streams of pieces that are nothing else."""
    return [piece[0] for piece in pieces if len(piece) == 1 and isinstance(piece[0], Stream)]


def _step(coercer: Moves, own: Axis, goal: Axis, table: bool) -> tuple[Axis, str]:
    """The next level of a piece on its way to ``goal``, and what brings it there."""
    if own == goal or not has_stream(own):
        return own, ""
    stream, wanted = _streams(own, goal)
    if stream.level == wanted.level:
        return own, ""
    if table and wanted.level and not stream.level:
        return goal, "take"
    level = coercer.levels.step(stream, wanted.level)
    kind = "merge" if level > stream.level else "unmerge"
    return (coercer.levels.at(stream, level),), kind


def _act(coercer: Moves, before: list[Axis], after: list[Axis], kind: str) -> Act:
    """What runs on the whole row, given the axis of its tokens."""
    counts = [count(axis) for axis in before]
    left = [count(axis) for axis in after]
    own, goal = ((Concat(tuple(row)),) for row in (before, after))
    rows = coercer.levels.rows

    def parts() -> list[Node | int]:
        return [_part(coercer, *pair, kind) for pair in zip(before, after, strict=True)]

    if kind == "merge":
        row = rows.plan(own, goal)
        plan = coercer.emit(ops.join_plans, parts(), counts, left) if row is None else row.plan
        sizes = [size_row(coercer, axis) for axis in (own, goal)]
        return lambda value, dim, *_: coercer.emit(ops.merge, value, plan, *sizes, dim)
    index = rows.origin(goal) if kind == "take" else rows.assignment(own, goal)
    if index is None:
        index = coercer.emit(ops.join_maps, parts(), counts)
    op = ops.take if kind == "take" else ops.unmerge
    return lambda value, dim, *_: coercer.emit(op, value, index, dim)


def _part(coercer: Moves, own: Axis, goal: Axis, kind: str) -> Node | int:
    """How a piece moves, or the number of tokens of one that stays."""
    if own == goal:
        return count(own)
    stream, wanted = _streams(own, goal)
    levels = coercer.levels
    if kind == "merge":
        return levels.plan(stream.id, wanted.level)
    if kind == "take":
        return levels.origin(stream.id, wanted.level)
    return levels.assignment(stream.id, stream.level, wanted.level)
