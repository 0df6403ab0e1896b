"""The levels of each stream, and the index maps between them.

Level 0 has all tokens. A merge makes a new level from the one that its site stands at, which is the
deepest one unless tokens were told apart since (``remerge="never"``): levels are a tree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import Stream, TensorType, map_streams
from tome_fx.lifting.joint import Rows

# An axis, and which of its streams.
Spot: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Share:
    """What a stream has of a row whose level was made at once.

    Attributes:
        plan: of ``of`` alike streams, of which it is the one at ``place``.
        size: of the row, from ``start`` on.
    """

    plan: Node
    place: int
    of: int
    size: Node
    start: int
    count: int


@dataclass
class Level:
    """The nodes that describe one level of a stream; what is not given comes on first use.

    ``base`` is the level that it was merged from, ``merged`` the tokens that it lacks to level 0;
    ``plans`` lead here at once from the levels below ``base``.
    """

    plan: Node | None
    size: Node | None
    merged: int
    base: int
    share: Share | None = None
    step: Node | None = None
    assignment: Node | None = None
    origin: Node | None = None
    plans: dict[int, Node] = field(default_factory=dict)


@dataclass
class Levels:
    """All levels of all streams; ``emit`` appends a call to the graph."""

    emit: Callable[..., Node]
    found: dict[int, list[Level]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = Rows(self.emit)

    def depth(self, stream: int) -> int:
        """The newest level of a stream."""
        return len(self.found.get(stream, ()))

    def get(self, stream: int, level: int) -> Level:
        """A level above 0."""
        return self.found[stream][level - 1]

    def add(self, stream: int, plan: Node, size: Node, removed: int, base: int) -> None:
        """A new level, with ``removed`` tokens less than ``base``."""
        merged = self.merged(stream, base) + removed
        self.found.setdefault(stream, []).append(Level(plan, size, merged, base))

    def share(self, stream: int, share: Share, removed: int, base: int) -> None:
        """The same for one of the streams of a row."""
        merged = self.merged(stream, base) + removed
        self.found.setdefault(stream, []).append(Level(None, None, merged, base, share))

    def merged(self, stream: int, level: int) -> int:
        """The tokens that a level lacks."""
        return self.get(stream, level).merged if level else 0

    def at(self, stream: Stream, level: int) -> Stream:
        """``stream`` at another level."""
        return replace(stream, level=level, merged=self.merged(stream.id, level))

    def plan(self, stream: int, level: int) -> Node:
        """The merge that makes a level."""
        own = self.get(stream, level)
        if own.plan is None:
            share = own.share
            assert share is not None, "a level has a plan or a share in one"
            own.plan = self.emit(ops.own_plan, share.plan, share.place, share.of)
        return own.plan

    def plan_from(self, stream: int, below: int, level: int) -> Node:
        """The merges that lead to a level from one below it, as one.

        What comes from the start of a stream late, as what a convolution made of all tokens in each
        block does, would go through as many merges as there were until then.
        """
        top = self.get(stream, level)
        if top.base == below:
            return self.plan(stream, level)
        if below not in top.plans:
            earlier = self.plan_from(stream, below, top.base)
            own = self.plan(stream, level), earlier, self._slots(stream, level)
            top.plans[below] = self.emit(ops.compose_plans, *own)
        return top.plans[below]

    def size(self, stream: int, level: int) -> Node | None:
        """Group sizes at a level; None at level 0, where all are 1."""
        if not level:
            return None
        own = self.get(stream, level)
        if own.size is None:
            share = own.share
            assert share is not None, "a level has sizes or a share in some"
            end = share.start + share.count
            own.size = self.emit(torch.ops.aten.slice.Tensor, share.size, 1, share.start, end)
        return own.size

    def step(self, stream: Stream, goal: int) -> int:
        """The next level on the way from the level of ``stream`` to ``goal``."""
        way = self._way(stream.id, goal)
        if stream.level in way:
            return way[way.index(stream.level) - 1]
        return goal if goal in self._way(stream.id, stream.level) else 0

    def common(self, stream: int, levels: Sequence[int], same: bool = True) -> int:
        """Where values at several levels meet: at the one that was merged from all others.

        Of two branches neither was: what they all were merged from, since a group of one need not
        be one of the other. There too if they are not the ``same`` tokens, frames say: what one of
        them was merged by later is nothing to the others.
        """
        ways = [self._way(stream, level) for level in levels]
        longest = max(ways, key=len)
        if same and all(level in longest for level in levels):
            return longest[0]
        return next(level for level in longest if all(level in way for way in ways))

    def _way(self, stream: int, level: int) -> list[int]:
        """A level, what it was merged from, and so on to level 0."""
        way = [level]
        while way[-1]:
            way.append(self.get(stream, way[-1]).base)
        return way

    def assignment(self, stream: int, level: int, goal: int = 0) -> Node:
        """The slot at ``level`` of each token at level ``goal``, from which it came: ``[B, n]``."""
        top = self.get(stream, level)
        if goal == 0 and top.assignment is not None:
            return top.assignment
        result = self._slots(stream, level)
        if top.base != goal:
            result = self.emit(ops.compose, result, self.assignment(stream, top.base, goal))
        if goal == 0:
            top.assignment = result
        return result

    def _slots(self, stream: int, level: int) -> Node:
        """The slot at ``level`` of each token of the level that it was merged from."""
        top = self.get(stream, level)
        if top.step is None:
            top.step = self.emit(ops.assignment, self.plan(stream, level))
        return top.step

    def origin(self, stream: int, level: int) -> Node:
        """The original position of each slot's representative at ``level``: ``[B, n']``."""
        top = self.get(stream, level)
        if top.origin is None:
            keep = self.emit(ops.kept, self.plan(stream, level))
            below = self.origin(stream, top.base) if top.base else None
            top.origin = keep if below is None else self.emit(ops.compose, below, keep)
        return top.origin


def changed(have: TensorType, at: Spot, stream: Stream) -> tuple[TensorType, Stream]:
    """``have`` with another stream there, and that stream."""
    place, which = at
    order = itertools.count()
    axis = map_streams(have.axes[place], lambda s: stream if next(order) == which else s)
    return TensorType((*have.axes[:place], axis, *have.axes[place + 1 :])), stream
