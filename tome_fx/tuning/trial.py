"""Trying schedules: planned for a time, looked at for their drift, measured for their speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tome_fx.tuning.costs import Clock, Pair, Schedule, merging_share, set_by
from tome_fx.tuning.drift import Drift
from tome_fx.tuning.memo import Memo
from tome_fx.tuning.shapes import Shape, spread
from tome_fx.tuning.speed import Speed

Advance: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """What schedules are tried on.

    Attributes:
        plan: from a schedule to the tokens that reach each layer and those it removes; cheap.
        share: from that to the MACs over those of the original, estimated; cheap.
        look: the drift of a schedule, and its MACs over those of the original; a second.
        measure: the speed of a schedule; a minute.
    """

    plan: Callable[[Sequence[int]], tuple[Pair, ...]]
    share: Callable[[Sequence[Pair]], float]
    look: Callable[[Schedule], tuple[Drift, float]]
    measure: Callable[[Schedule], Speed]


@dataclass
class Trial:
    """A search under way: what it may still do, and what it knows.

    ``looked`` names the shape of each schedule that this run asked for. It counts, and predictions
    are made from, what was asked for and not what an earlier run knew: so a search that is started
    again takes the same way as one that never stopped.
    """

    subject: Subject
    strongest: Schedule
    tokens: int
    memo: Memo
    budget: int
    measurements: int
    advance: Advance = lambda note: None
    clock: Clock = field(default_factory=Clock)
    looked: dict[Schedule, str] = field(default_factory=dict)
    measured: list[Schedule] = field(default_factory=list)

    def time(self, r: Schedule) -> float:
        """The expected time of a schedule over that of the original."""
        steps = self.subject.plan(r)
        share = self.memo.drifts[r][1] if r in self.looked else self.subject.share(steps)
        return self.clock.time(share, steps)

    def at(self, shape: Shape | None, tokens: int) -> Schedule:
        """So many tokens merged in this shape; for None, at each layer. Clamped."""
        layers = len(self.strongest)
        r = [tokens] * layers if shape is None else spread(shape, tokens)
        return tuple(removed for _, removed in self.subject.plan(r))

    def most(self, shape: Shape | None) -> int:
        """A number of tokens that is beyond what the shape can merge, or nearly."""
        return self.tokens * (1 if shape is None else 4)

    def fit(self, shape: Shape | None, time: float) -> Schedule | None:
        """The fewest merges of this shape that are expected to take at most ``time``.

        None where its most merges take longer.
        """
        low, high = 0, self.most(shape)
        if self.time(self.at(shape, high)) > time:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            slow = self.time(self.at(shape, middle)) > time
            low, high = (middle, high) if slow else (low, middle)
        return self.at(shape, high)

    @property
    def left(self) -> int:
        """How many more schedules may be looked at."""
        return self.budget - len(self.looked)

    def drift(self, r: Schedule, name: str) -> float:
        """The drift of a schedule of the shape ``name``, measured unless it is known."""
        if r in self.looked:
            return self.memo.drifts[r][0].distance
        if r not in self.memo.drifts:
            self.memo.put_drift(r, *self.subject.look(r))
        self.looked[r] = name
        found = self.memo.drifts[r][0].distance
        self.advance(f"drift {found:.4f} at about {1 / self.time(r):.2f}x")
        return found

    def speed(self, r: Schedule, name: str) -> float:
        """The speed-up of a schedule, measured unless it is known; the clock is set by it."""
        if r in self.measured:
            return self.memo.speeds[r].speedup
        self.drift(r, name)
        self.advance(f"measuring what may be {1 / self.time(r):.2f}x")
        if r not in self.memo.speeds:
            self.memo.put_speed(r, self.subject.measure(r))
        self.measured.append(r)
        self.clock = set_by([self._sample(one) for one in self.measured])
        return self.memo.speeds[r].speedup

    def surprise(self, r: Schedule) -> float:
        """How much longer a measured schedule takes than the clock says; 0 if not measured."""
        if r not in self.measured:
            return 0.0
        return 1.0 / self.memo.speeds[r].speedup - self.time(r)

    def _sample(self, r: Schedule) -> tuple[float, float, float]:
        share = self.memo.drifts[r][1]
        return share, merging_share(self.subject.plan(r)), 1.0 / self.memo.speeds[r].speedup
