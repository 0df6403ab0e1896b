"""Interleaved timing: several callables in turn, round after round, in one process.

A machine drifts (clock, heat, neighbours). Timed one after the other, two programs meet two
machines; timed in turn, both meet the same one, and their ratio holds where neither time does.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile; of a single sample, the sample."""
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third

    @property
    def iqr(self) -> float:
        """The interquartile range: the spread of the middle half."""
        first, third = self.quartiles
        return third - first


def interleaved(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    *,
    synchronize: Callable[[], object] = lambda: None,
    min_sample: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time each callable once a round and return the samples by name.

    The order turns round from one round to the next (abc, cba, abc, ...), so that nobody always
    follows the same neighbour's caches. `synchronize` is called before and after each sample,
    for devices that run behind the program's back. A sample is one call, or as many as the
    warm-up says are needed to fill `min_sample` seconds; its value is seconds per call.
    `progress` is called after each pass over one callable, (warmup + rounds) * len(callables)
    times in all.

    Raises ValueError for no callables, rounds < 1 or warmup < 0.
    """
    if not callables:
        raise ValueError("nothing to time")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup 0, got {rounds} and {warmup}")

    def sample(call: Callable[[], object], count: int) -> float:
        synchronize()
        start = clock()
        for _ in range(count):
            call()
        synchronize()
        return (clock() - start) / count

    counts = dict.fromkeys(callables, 1)
    names = list(callables)
    for _ in range(warmup):
        for name in names:
            seconds = sample(callables[name], 1)
            counts[name] = calls_needed(seconds, min_sample)
            progress()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            samples[name].append(sample(callables[name], counts[name]))
            progress()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def calls_needed(seconds: float, min_sample: float) -> int:
    """Return how many calls of `seconds` each fill `min_sample`: at least 1, at most 1000."""
    if min_sample <= 0:
        return 1
    return max(1, min(1000, math.ceil(min_sample / max(seconds, 1e-9))))


def speedup(before: Timing, after: Timing) -> float:
    """Return how many times faster `after` is: the ratio of the medians."""
    return before.median / after.median


def paired_speedup(before: Timing, after: Timing) -> Timing:
    """Return the ratio round by round, whose spread says how far to trust `speedup`."""
    pairs = zip(before.samples, after.samples, strict=True)
    return Timing(tuple(one / other for one, other in pairs))
