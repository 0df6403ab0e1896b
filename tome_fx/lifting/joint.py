"""Levels of a row of streams, made at once.

Windows, and images packed in a row, are many streams that merge at the same places. What one plan
moves costs as much for all of them as for one:

    [S0.0:64|S1.0:64|S2.0:32]  ->  [S0.1:60|S1.1:60|S2.1:30]

A row is known by its streams, each at its level, and by how many tokens stand between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import Axis, Concat, Stream, count, has_stream

# A stream and its level, or tokens of no stream.
Key: TypeAlias = tuple[tuple[int, int] | int, ...]


@dataclass
class Row:
    """A level of a row: the nodes that describe it; index maps come on first use.

    Attributes:
        plan: of the whole row, from ``base``.
        size: group sizes ``[B, N]``, 1 where no stream is.
        base: the row that it was merged from.
    """

    plan: Node
    size: Node
    base: Key
    step: Node | None = None
    origin: Node | None = None
    assignments: dict[Key, Node] = field(default_factory=dict)


@dataclass
class Rows:
    """All levels of all rows; ``emit`` appends a call to the graph."""

    emit: Callable[..., Node]
    known: dict[Key, Row] = field(default_factory=dict)

    def add(self, axis: Axis, before: Axis, plan: Node, size: Node) -> None:
        """A new level: the row ``axis``, merged from ``before``."""
        own, base = key_of(axis), key_of(before)
        assert own is not None, "what merges at once is a row of streams"
        assert base is not None, "and was one before"
        self.known[own] = Row(plan, size, base)

    def of(self, axis: Axis) -> Row | None:
        """The row that an axis holds, where its level was made at once."""
        key = key_of(axis)
        return None if key is None else self.known.get(key)

    def plan(self, before: Axis, after: Axis) -> Row | None:
        """The row that a merge makes of ``before``."""
        row = self.of(after)
        return row if row is not None and row.base == key_of(before) else None

    def assignment(self, axis: Axis, goal: Axis) -> Node | None:
        """The slot in ``axis`` of each token of ``goal``, from which it came: ``[B, N]``."""
        own, wanted = key_of(axis), key_of(goal)
        return None if own is None or wanted is None else self._assignment(own, wanted)

    def _assignment(self, own: Key, goal: Key) -> Node | None:
        row = self.known.get(own)
        if row is None:
            return None
        if goal not in row.assignments:
            if row.step is None:
                row.step = self.emit(ops.assignment, row.plan)
            below = None if row.base == goal else self._assignment(row.base, goal)
            if below is None and row.base != goal:
                return None
            step = row.step
            row.assignments[goal] = step if below is None else self.emit(ops.compose, step, below)
        return row.assignments[goal]

    def origin(self, axis: Axis) -> Node | None:
        """The original position of each slot's representative, ``[B, N']``."""
        own = key_of(axis)
        return None if own is None else self._origin(own)

    def _origin(self, own: Key) -> Node | None:
        row = self.known.get(own)
        if row is None:
            return None
        if row.origin is None:
            keep = self.emit(ops.kept, row.plan)
            if _is_whole(row.base):
                row.origin = keep
            else:
                below = self._origin(row.base)
                row.origin = None if below is None else self.emit(ops.compose, below, keep)
        return row.origin


def key_of(axis: Axis) -> Key | None:
    """What a row of member values is known by; None for what is no such row."""
    if len(axis) != 1 or not isinstance(axis[0], Concat):
        return None
    found: list[tuple[int, int] | int] = []
    for part in axis[0].parts:
        if not has_stream(part):
            found.append(count(part))
        elif len(part) == 1 and isinstance(part[0], Stream) and not part[0].extensive:
            found.append((part[0].id, part[0].level))
        else:
            return None
    own = [piece[0] for piece in found if not isinstance(piece, int)]
    return tuple(found) if len(own) == len(set(own)) > 1 else None


def _is_whole(key: Key) -> bool:
    return not any(piece[1] for piece in key if not isinstance(piece, int))
