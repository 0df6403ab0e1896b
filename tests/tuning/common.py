"""Machines whose speed is a formula, under a model that is another formula or a real, small one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.tiny import tiny
from tome_fx.grouping import clamp
from tome_fx.module import ToMeModule
from tome_fx.tuning import tune as tuning
from tome_fx.tuning.costs import Pair, Schedule
from tome_fx.tuning.drift import Drift, Reference
from tome_fx.tuning.memo import Memo
from tome_fx.tuning.speed import Speed
from tome_fx.tuning.trial import Subject, Trial

Law = Callable[[float, Sequence[int]], float]
SIZE = 112  # 7 x 7 patches
DEPTH = 3


def model() -> nn.Module:
    return tiny(depth=DEPTH, img_size=SIZE)


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    """Smooth surfaces with a little noise, ``[count, 3, SIZE, SIZE]``: patches that are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, SIZE, mode="bilinear")
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def plain(share: float, r: Sequence[int]) -> float:
    """Merging costs a little for each layer that merges, and less is saved than MACs say."""
    return 1.0 - 0.85 * (1.0 - share) + 0.03 * sum(x > 0 for x in r) / len(r)


def cheap(share: float, r: Sequence[int]) -> float:
    """More is saved than the MACs say: fewer tokens fit the caches."""
    return 1.0 - 1.1 * (1.0 - share)


def odd(share: float, r: Sequence[int]) -> float:
    """What no formula of that kind says: some schedules are slower than others of equal cost."""
    return plain(share, r) * (1.0 + 0.02 * (sum(r) % 3))


@dataclass
class Machine:
    """Speed by a law of the share of MACs and of the schedule; keeps what is asked of it."""

    law: Law
    measured: list[Schedule] = field(default_factory=list)
    looked: list[Schedule] = field(default_factory=list)

    def speed(self, share: float, r: Schedule) -> Speed:
        self.measured.append(r)
        speed = 1.0 / self.law(share, r)
        return Speed(speed, 0.99 * speed, 1.01 * speed)

    def forget(self) -> None:
        self.measured.clear()
        self.looked.clear()

    def install(self, patch: pytest.MonkeyPatch) -> Machine:
        """Put it in the place of the stopwatch of real models."""
        real = Reference.drift_of

        def counted(reference: Reference, module: Any) -> Drift:
            self.looked.append(module.schedule)
            return real(reference, module)

        def stopwatch(*_: object) -> Callable[[ToMeModule], Speed]:
            return lambda fast: self.speed(1.0 / fast.report.flop_ratio, fast.schedule)

        patch.setattr(tuning, "stopwatch", stopwatch)
        patch.setattr(Reference, "drift_of", counted)
        return self


@dataclass(frozen=True)
class World:
    """A model of ``tokens`` whose layer ``i`` changes the outputs by ``harm[i]`` when it merges."""

    harm: tuple[float, ...]
    tokens: int = 60

    def plan(self, r: Sequence[int]) -> tuple[Pair, ...]:
        left, steps = self.tokens, []
        for want in r:
            removed = clamp(want, left)
            steps.append((left, removed))
            left -= removed
        return tuple(steps)

    def macs(self, steps: Sequence[Pair]) -> float:
        return sum(40 * before + before**2 + 80 * (before - r) for before, r in steps)

    def share(self, steps: Sequence[Pair]) -> float:
        return self.macs(steps) / self.macs([(self.tokens, 0)] * len(self.harm))

    def drift(self, r: Sequence[int]) -> float:
        steps = self.plan(r)
        return sum(h * (x / before) ** 1.5 for h, (before, x) in zip(self.harm, steps, strict=True))

    def trial(
        self, machine: Machine, memo: Memo | None = None, budget: int = 40, measurements: int = 6
    ) -> Trial:
        def counted(r: Schedule) -> float:
            # It differs a little from the estimate, as for a model that is no polynomial.
            return self.share(self.plan(r)) * (1 + 1e-3 * (sum(r) % 2))

        def look(r: Schedule) -> tuple[Drift, float]:
            machine.looked.append(r)
            return Drift(self.drift(r), None), counted(r)

        def measure(r: Schedule) -> Speed:
            return machine.speed(counted(r), r)

        strongest = tuple(r for _, r in self.plan([self.tokens] * len(self.harm)))
        subject = Subject(self.plan, self.share, look, measure)
        memo = Memo(None, {}) if memo is None else memo
        return Trial(subject, strongest, self.tokens, memo, budget, measurements)


def kept(path: Path) -> Memo:
    return Memo(path, {"model": "a formula"})


def seen(goal: dict[str, float], **options: Any) -> tome_fx.Tuned:
    """The real function on the real model."""
    images = options.pop("images", None)
    images = pictures() if images is None else images
    options = {"budget": 8, "progress": False, **options}
    return tome_fx.tune(options.pop("model", None) or model(), images, **goal, **options)
