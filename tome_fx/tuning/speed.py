"""How many times faster a merged program is, measured: both programs in turn, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from tome_fx.capturing.examples import Example
from tome_fx.measuring.machine import synchronize
from tome_fx.measuring.timing import interleaved, paired_speedup, speedup
from tome_fx.module import ToMeModule


@dataclass(frozen=True)
class Speed:
    """Seconds of the original over those of the merged program.

    ``speedup`` is the ratio of the medians, ``q1`` and ``q3`` the quartiles of the ratios round by
    round.
    """

    speedup: float
    q1: float
    q3: float


Stopwatch: TypeAlias = Callable[[ToMeModule], Speed]


@dataclass(frozen=True)
class Timed:
    """How to time: ``warmup`` calls that do not count, then ``rounds`` samples of each program."""

    compiled: bool = True
    rounds: int = 10
    warmup: int = 2
    min_sample: float = 0.05


def stopwatch(original: Callable[..., Any], batch: Example, timed: Timed) -> Stopwatch:
    """Return a function that times a merged module, as it is planned now, against ``original``."""
    made: list[Callable[[], object]] = []

    def prepared(module: Callable[..., Any]) -> Callable[[], object]:
        program = torch.compile(module) if timed.compiled else module

        def call() -> object:
            with torch.inference_mode():
                return program(*batch.args, **batch.kwargs)

        call()
        return call

    def measure(fast: ToMeModule) -> Speed:
        # Each schedule is a program of its own; none may fall back to eager for the others.
        with torch._dynamo.config.patch(recompile_limit=64):
            if not made:
                made.append(prepared(original))
            found = interleaved(
                {"original": made[0], "merged": prepared(copy.copy(fast))},
                timed.rounds,
                timed.warmup,
                synchronize=lambda: synchronize(_device(batch)),
                min_sample=timed.min_sample,
            )
        before, after = found["original"], found["merged"]
        return Speed(speedup(before, after), *paired_speedup(before, after).quartiles)

    return measure


def _device(batch: Example) -> torch.device:
    device: torch.device = next(x.device for x in batch.leaves if isinstance(x, torch.Tensor))
    return device
