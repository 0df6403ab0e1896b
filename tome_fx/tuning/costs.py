"""What a schedule costs before it is tried: multiply-accumulates, and from them the time.

Planning a schedule is cheap, rewriting the program for it takes a second, compiling it a minute.
So the multiply-accumulates of each block are fitted as a polynomial of its tokens to a few
rewrites (exact for attention, which is quadratic in them), and the time to a few compiled
measurements:

    1 - time/time of the original  =  gain * (1 - MACs/MACs of the original)  -  toll * share

``gain`` is how much of the MACs saved is saved as time, ``toll`` what merging itself costs beyond
its MACs, for the ``share`` of the layers that merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from tome_fx.module import ToMeModule
from tome_fx.passes.plan import plan

Schedule: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]

# How firmly the fit of the time holds to its start, gain 1 and toll 0, against one measurement.
HOLD = 1e-3


def planned(fast: ToMeModule, r: Sequence[int]) -> tuple[Pair, ...]:
    """Return for each layer the tokens that reach it and those it removes, after clamping."""
    steps = plan(fast._located().findings, list(r)).steps
    return tuple((step.before, step.removed) for step in steps)


@dataclass(frozen=True)
class Costs:
    """MACs of a schedule by its tokens, fitted; ``known`` are schedules whose MACs were counted."""

    blocks: tuple[Tensor, ...]
    rest: Tensor
    original: int
    scale: float

    def share(self, steps: Sequence[Pair]) -> float:
        """MACs with these merges over those of the original."""
        macs = sum(
            float(_block(step, self.scale) @ weights)
            for step, weights in zip(steps, self.blocks, strict=True)
        )
        return max(0.0, macs + float(_rest(steps, self.scale) @ self.rest)) / self.original


def fitted(fast: ToMeModule, probes: Sequence[Schedule]) -> Costs:
    """Return the costs, fitted to rewrites of ``fast`` with each of the ``probes``."""
    seen = []
    for r in probes:
        fast.r = list(r)
        seen.append((planned(fast, r), fast.report))
    scale = float(max(before for before, _ in seen[0][0]))
    blocks = tuple(
        _solved(
            [_block(steps[i], scale) for steps, _ in seen],
            [report.blocks[i].macs_after for _, report in seen],
        )
        for i in range(len(seen[0][0]))
    )
    rest = _solved(
        [_rest(steps, scale) for steps, _ in seen],
        [report.macs_after - sum(b.macs_after for b in report.blocks) for _, report in seen],
    )
    return Costs(blocks, rest, seen[0][1].macs_before, scale)


def _solved(rows: Sequence[Tensor], values: Sequence[int]) -> Tensor:
    wanted = torch.tensor(values, dtype=torch.float64, device="cpu")[:, None]
    solved: Tensor = torch.linalg.lstsq(torch.stack(list(rows)), wanted, driver="gelsd").solution
    return solved[:, 0]


def _block(step: Pair, scale: float) -> Tensor:
    before, after = step[0] / scale, (step[0] - step[1]) / scale
    return torch.tensor([1.0, before, before**2, after], dtype=torch.float64, device="cpu")


def _rest(steps: Sequence[Pair], scale: float) -> Tensor:
    """The matching, quadratic in the tokens of each layer that merges, and what follows the end."""
    last = (steps[-1][0] - steps[-1][1]) / scale
    merging = [before / scale for before, removed in steps if removed]
    squares = sum(tokens**2 for tokens in merging)
    return torch.tensor([1.0, last, squares, sum(merging)], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Clock:
    """The time of a schedule over that of the original."""

    gain: float = 1.0
    toll: float = 0.0

    def time(self, share: float, steps: Sequence[Pair]) -> float:
        """Return it for the MACs of a schedule over those of the original."""
        return max(1e-3, 1.0 - self.gain * (1.0 - share) + self.toll * merging_share(steps))


def merging_share(steps: Sequence[Pair]) -> float:
    """Return how many of the layers merge."""
    return sum(removed > 0 for _, removed in steps) / len(steps)


def set_by(measured: Sequence[tuple[float, float, float]]) -> Clock:
    """Return the clock fitted to measurements: share of MACs, share of layers, time."""
    a = b = d = u = v = 0.0
    for share, layers, time in measured:
        x, z, y = 1.0 - share, -layers, (1.0 - time) - (1.0 - share)
        a, b, d = a + x * x, b + x * z, d + z * z
        u, v = u + x * y, v + z * y
    a, d = a + HOLD, d + HOLD
    determinant = a * d - b * b
    return Clock(1.0 + (u * d - v * b) / determinant, (v * a - u * b) / determinant)
