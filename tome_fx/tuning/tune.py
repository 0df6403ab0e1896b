"""The public function: :func:`tune`."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tome_fx.api import _unwrapped, transform
from tome_fx.capturing.examples import Example
from tome_fx.errors import ConfigError
from tome_fx.files import file_path
from tome_fx.module import ToMeModule
from tome_fx.options import EXAMPLES, OPTIONS, reject_unknown
from tome_fx.tuning import progress as shown
from tome_fx.tuning.asking import check, facts
from tome_fx.tuning.batches import batches_of
from tome_fx.tuning.costs import Schedule, fitted, planned
from tome_fx.tuning.drift import Drift, Reference
from tome_fx.tuning.memo import Memo
from tome_fx.tuning.search import for_drift, for_speed, sweep
from tome_fx.tuning.speed import Speed, Stopwatch, Timed, stopwatch
from tome_fx.tuning.trial import Advance, Subject, Trial
from tome_fx.tuning.tuned import Point, Tuned


def tune(
    model: Any,
    images: Any,
    *,
    target_speedup: float | None = None,
    max_drift: float | None = None,
    batch_size: int = 8,
    compiled: bool = True,
    rounds: int = 10,
    warmup: int = 2,
    budget: int = 64,
    measurements: int = 6,
    state: str | Path | None = None,
    progress: bool | Advance = True,
    **options: Any,
) -> Tuned:
    """Find how many tokens to merge at each layer, for this model, these images, this device.

    The answer changes the outputs least of the schedules that were measured to be fast enough, or
    is the fastest of those that change them little enough. No labels are needed.

    Args:
        model: what :func:`tome_fx.transform` takes, in eval mode. It stays as it is.
        images: a tensor ``[N, C, H, W]``, or batches: tensors, tuples of inputs or dicts of keyword
            inputs. All of them are kept, on the model's device; some dozens are enough.
        target_speedup: how many times faster than the original, above 1.
        max_drift: how far the outputs may move, above 0: their change relative to their size
            (L2), mean over images. 0.1 is a change of a tenth. One of the two goals is given.
        batch_size: images a batch, where ``images`` is a tensor. Speed is measured on the first
            batch.
        compiled: measure under ``torch.compile``, both sides; False for eager mode.
        rounds, warmup: samples of each program in one measurement, and calls before them.
        budget: schedules to look at in the search, at least 8; up to 40 more place them at the
            goal and make the curve. Each costs a rewrite and a pass over the images.
        measurements: schedules to time, at most; at least 2. Each is compiled.
        state: a JSON file that keeps what was measured. A run that was interrupted goes on from it,
            and another goal for the same model, images and device starts with it.
        progress: True for a bar on stderr, or a function that is called with a note at each step.
        options: options of :func:`tome_fx.transform`, but ``r`` and ``min_ratio``.

    Returns:
        The schedule with its measured speed-up and its drift, the curve, and the merged module.

    Raises:
        TypeError, InputError, CaptureError, NoAttentionFoundError, AlreadyTransformedError: as of
            ``transform``.
        ConfigError: an option is outside its range, the goal cannot be reached (the text says what
            can), no token can merge, there are no images, or ``state`` is of another run.
    """
    timed = Timed(compiled, rounds, warmup)
    reject_unknown([name for name in options if name not in OPTIONS], _known())
    check(target_speedup, max_drift, batch_size, timed, budget, measurements, options)
    if not isinstance(progress, bool) and not callable(progress):
        raise ConfigError(f"progress={progress!r} is not True, False or a function of a note.")
    kept = None if state is None else file_path(state, "A state")
    model = _unwrapped(model)
    original = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    if isinstance(model, nn.Module) and model.training:
        raise ConfigError("The model is in training mode, where outputs are random. Call .eval().")
    batches = batches_of(images, batch_size, original)
    fast = _transformed(model, batches[0], options)
    memo = Memo(kept, facts(original, fast, batches, timed))
    watch = stopwatch(original, batches[0], timed)
    tokens = max((block.tokens_in for block in fast.report.blocks), default=0)
    strongest = _strongest(fast, tokens)
    subject = _subject(fast, strongest, Reference(original, batches), watch)
    trial = Trial(subject, strongest, tokens, memo, budget, measurements)
    bar = shown.bar(budget + 40 + measurements) if progress is True else nullcontext(progress)
    with bar as advance:
        trial.advance = advance or trial.advance
        answer = search(trial, target_speedup, max_drift)
    fast.r = list(answer)
    return tuned(trial, answer, fast)


def search(trial: Trial, target_speedup: float | None, max_drift: float | None) -> Schedule:
    """Search for one of the goals, then look at some more schedules for the curve."""
    if target_speedup is not None:
        answer = for_speed(trial, float(target_speedup))
    else:
        assert max_drift is not None, "one goal is given"
        answer = for_drift(trial, float(max_drift))
    sweep(trial, answer)
    return answer


def tuned(trial: Trial, answer: Schedule, fast: ToMeModule) -> Tuned:
    """What the trial knows, as the user gets it."""
    drift, share = trial.memo.drifts[answer]
    speed = trial.memo.speeds[answer]
    return Tuned(
        schedule=answer,
        speedup=speed.speedup,
        speedup_q1=speed.q1,
        speedup_q3=speed.q3,
        drift=drift.distance,
        agreement=drift.agreement,
        flop_ratio=1.0 / share,
        curve=tuple(_point(trial, r) for r in trial.looked),
        module=fast,
    )


def _point(trial: Trial, r: Schedule) -> Point:
    drift, share = trial.memo.drifts[r]
    speed = trial.memo.speeds[r].speedup if r in trial.measured else None
    predicted = 1.0 / trial.time(r)
    return Point(r, trial.looked[r], 1.0 / share, predicted, speed, drift.distance, drift.agreement)


def _known() -> tuple[str, ...]:
    """What tune takes by name, its own first."""
    found = inspect.signature(tune).parameters.values()
    own = [parameter.name for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]
    return (*own, *(name for name in OPTIONS if name not in ("r", "min_ratio")))


def _transformed(model: Any, batch: Example, options: dict[str, Any]) -> ToMeModule:
    """What is measured is not left out for saving little."""
    given = not options.keys().isdisjoint(EXAMPLES)
    if not given and not isinstance(model, torch.export.ExportedProgram):
        options = {
            **options,
            "example_inputs": batch.args or None,
            "example_kwargs": dict(batch.kwargs) or None,
        }
    return transform(model, 0, **{**options, "min_ratio": 0.0})


def _strongest(fast: ToMeModule, tokens: int) -> Schedule:
    """As many merges as each layer can give; raises ConfigError where none can."""
    r = tuple(removed for _, removed in planned(fast, [tokens] * len(fast.schedule)))
    if not any(r):
        raise ConfigError(
            "No token of this model can merge with these options, so there is nothing to tune. "
            "print(tome_fx.explain(model, ...)), with the same options, says why."
        )
    return r


def _subject(
    fast: ToMeModule, strongest: Schedule, reference: Reference, watch: Stopwatch
) -> Subject:
    """A module to try schedules on."""
    half = len(strongest) // 2
    late = [removed if i >= half else 0 for i, removed in enumerate(strongest)]
    probes = [[int(part * x) for x in strongest] for part in (0.0, 0.1, 0.25, 0.5, 1.0)]
    costs = fitted(fast, [tuple(removed for _, removed in planned(fast, r))
                          for r in (*probes, late)])  # fmt: skip

    def look(r: Schedule) -> tuple[Drift, float]:
        fast.r = list(r)
        return reference.drift_of(fast), 1.0 / fast.report.flop_ratio

    def measure(r: Schedule) -> Speed:
        fast.r = list(r)
        return watch(fast)

    return Subject(lambda r: planned(fast, r), costs.share, look, measure)
