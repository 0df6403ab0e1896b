"""The search: start from known shapes, move merges between layers, and measure what is best.

Both goals end with measured schedules to choose from, a constant one among them: the answer is
never worse than a constant ``r`` that was measured to be as fast.
"""

from __future__ import annotations

from tome_fx.errors import ConfigError
from tome_fx.tuning.costs import Schedule
from tome_fx.tuning.shapes import Shape, families, moved, moves
from tome_fx.tuning.trial import Trial

CONSTANT, REFINED = "constant r", "refined"

# A schedule this much faster than was asked for is not made weaker: measuring is dear.
CLOSE = 1.03

# What a schedule that missed the target must gain beyond what it lacked, in time of the original.
MARGIN = 0.004

# What moves multiply the merges of a group of layers by, in turn, and divide them.
STRENGTHS = (2.0, 1.4, 1.15)

# A move between layers must lower the drift by this share to count.
GAIN = 1e-3


def for_speed(trial: Trial, target: float) -> Schedule:
    """The schedule of least drift among those measured to be ``target`` times faster.

    Raises:
        ConfigError: none is; the text says how fast the fastest was.
    """
    time = 1.0 / target
    even = trial.fit(None, time)
    if even is None and trial.speed(trial.strongest, "strongest") >= target:
        even = trial.fit(None, time)
    if even is not None:
        trial.speed(even, CONSTANT)
    shapes: dict[str, Shape | None] = {CONSTANT: None}
    found = starts(trial, time)
    if found:
        name, shape, r = found[0]
        trial.speed(r, name)
        shapes |= {name: shape, REFINED: refined(trial, shape, time)}
    _settle(trial, shapes, target)
    good = [r for r in trial.measured if trial.memo.speeds[r].speedup >= target]
    if not good:
        best = max(trial.memo.speeds[r].speedup for r in trial.measured)
        raise ConfigError(
            f"target_speedup={target:g} was not reached: the fastest schedule of "
            f"{len(trial.measured)} measured is {best:.2f} times as fast as the original. Ask for "
            "less, give larger images or batches, or raise measurements."
        )
    return min(good, key=lambda r: trial.memo.drifts[r][0].distance)


def _settle(trial: Trial, shapes: dict[str, Shape | None], target: float) -> None:
    """Measure the best shape, and correct the schedules by what comes out, until it holds."""
    late = dict.fromkeys(shapes, 0.0)
    misses = 0
    while len(trial.measured) < trial.measurements:
        options = _options(trial, shapes, late, target)
        if not options:
            if trial.strongest in trial.measured:
                return
            if trial.speed(trial.strongest, "strongest") < target:
                return
            continue
        _, name, r = min(options)
        if r in trial.measured:
            return
        speed = trial.speed(r, name)
        if target <= speed <= CLOSE * target:
            return
        misses += speed < target
        late[name] = trial.surprise(r) + (MARGIN * misses if speed < target else 0.0)


def _options(
    trial: Trial, shapes: dict[str, Shape | None], late: dict[str, float], target: float
) -> list[tuple[float, str, Schedule]]:
    """Schedules that reach the target, measured or as far as is known, with drift and name."""
    time = 1.0 / target
    for name, shape in shapes.items():
        r = trial.fit(shape, time - late[name])
        if r is not None:
            trial.drift(r, name)
    return [
        (trial.drift(r, name), name, r)
        for r, name in trial.looked.items()
        if (
            trial.memo.speeds[r].speedup >= target
            if r in trial.measured
            else trial.time(r) + late.get(name, 0.0) <= time
        )
    ]


def for_drift(trial: Trial, limit: float) -> Schedule:
    """The fastest measured schedule whose drift is at most ``limit``.

    Raises:
        ConfigError: merging a single token drifts further, or nothing is faster than the original.
    """
    even = within(trial, None, CONSTANT, limit)
    flat = even or within(trial, families(len(trial.strongest))["constant"], "constant", limit)
    if not flat:
        least = min(trial.memo.drifts[r][0].distance for r in trial.looked)
        raise ConfigError(
            f"max_drift={limit:g} leaves nothing to merge: the least merging that was tried "
            f"drifts by {least:.3g}. Allow more than that."
        )
    trial.speed(flat, CONSTANT)
    time = trial.time(flat)
    found = starts(trial, time)
    if found:
        name, shape, _ = found[0]
        best = refined(trial, shape, time)
        for label, one in ((REFINED, best), (name, shape)):
            within(trial, one, label, limit, trial.fit(one, time))
    while len(trial.measured) < trial.measurements:
        good = [r for r in trial.looked if trial.memo.drifts[r][0].distance <= limit]
        fastest = min(good, key=lambda r: trial.time(r) + trial.surprise(r))
        if fastest in trial.measured:
            break
        trial.speed(fastest, REFINED)
    answer = max(trial.measured, key=lambda r: trial.memo.speeds[r].speedup)
    speed = trial.memo.speeds[answer].speedup
    if speed <= 1.0:
        raise ConfigError(
            f"At max_drift={limit:g} merging is not faster than the original here: the best is "
            f"{speed:.2f} times as fast. Allow more drift, or give larger images or batches."
        )
    return answer


def within(
    trial: Trial, shape: Shape | None, name: str, limit: float, known: Schedule | None = None
) -> Schedule | None:
    """The most merges of a shape whose drift is at most ``limit``, to 2 %; None for none.

    ``known`` is a schedule of the shape to begin near.
    """
    low, high = 0, trial.most(shape)
    best: Schedule | None = None
    guess = sum(known) if known else max(1, high // 16)
    while high - low > max(1, high // 50):
        r = trial.at(shape, guess)
        if trial.drift(r, name) <= limit:
            low, best = guess, r
        else:
            high = guess
        guess = (low + high) // 2
        if low and high == trial.most(shape):
            guess = min(guess, 2 * low)  # no bound above yet: not far beyond what is known
    return best if best and any(best) else None


def starts(trial: Trial, time: float) -> list[tuple[str, Shape, Schedule]]:
    """The known shapes, each with its schedule for ``time``; the least drift comes first."""
    found = []
    for name, shape in families(len(trial.strongest)).items():
        r = trial.fit(shape, time)
        if r is not None:
            found.append((trial.drift(r, name), name, shape, r))
    return [(name, shape, r) for _, name, shape, r in sorted(found)]


def refined(trial: Trial, shape: Shape, time: float) -> Shape:
    """A shape of less drift for the same time: merges moved between layers while that helps."""
    r = trial.fit(shape, time)
    if r is None:
        return shape
    best, shape = trial.drift(r, REFINED), tuple(float(count) for count in r)
    for strength in STRENGTHS:
        better = True
        while better and trial.left > 0:
            better = False
            for group, factor in moves(len(shape), strength):
                other = _lower(trial, moved(shape, group, factor), time, best)
                if other is not None:
                    best, shape, better = *other, True
    return shape


def _lower(trial: Trial, shape: Shape, time: float, best: float) -> tuple[float, Shape] | None:
    """The drift of a shape, and the shape, if the drift is lower than ``best``."""
    r = trial.fit(shape, time) if any(shape) and trial.left > 0 else None
    if r is None:
        return None
    drift = trial.drift(r, REFINED)
    return (drift, shape) if drift < best * (1.0 - GAIN) else None


def sweep(trial: Trial, answer: Schedule) -> None:
    """Look at weaker schedules of the answer's shape and of constant ``r``: they make a curve."""
    shape = tuple(float(count) for count in answer)
    time = trial.time(answer)
    for part in (0.25, 0.5, 0.75, 1.0):
        for name, one in ((CONSTANT, None), (REFINED, shape)):
            r = trial.fit(one, 1.0 - part * (1.0 - time)) if time < 1.0 else None
            if r is not None and any(r):
                trial.drift(r, trial.looked.get(answer, name) if one else name)
