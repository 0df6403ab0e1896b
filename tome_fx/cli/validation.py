"""One validation from its parts: model, merged programs and data; what was kept; the rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tome_fx.cli import console, datasets, evaluate, merging, partial, results
from tome_fx.cli.models import Loaded, ModelSpec
from tome_fx.cli.processes import Processes
from tome_fx.cli.scores import Score, Sums, score
from tome_fx.measuring.kept import weights_of
from tome_fx.own_matching import identity_of


@dataclass(frozen=True)
class Ready:
    """All that a run needs, checked."""

    loaded: Loaded
    found: list[evaluate.Contender]
    course: evaluate.Course


def prepare(
    spec: ModelSpec,
    data: datasets.DataSpec,
    rs: Mapping[str, Any],
    options: merging.MergeOptions,
    crop_pct: float | None,
    interpolation: str,
    batch_size: int,
    workers: int,
) -> Ready:
    """Return model, merged programs and data. Raises CliError or ToMeError for bad input."""
    loaded = merging.load_quietly(spec)
    config = replace(
        loaded.config,
        crop_pct=crop_pct or loaded.config.crop_pct,
        interpolation=interpolation or loaded.config.interpolation,
    )
    loaded = replace(loaded, config=config)
    classes = evaluate.call(loaded.model, loaded.example(2), None).shape[1]
    opened = datasets.open_data(data, config.input_size[0], classes, batch_size)
    total = None if datasets.is_stream(opened) else len(opened)
    reading = datasets.Reading(config, batch_size, workers, loaded.device, loaded.dtype)
    found = evaluate.contenders(loaded, rs, options)
    return Ready(loaded, found, evaluate.Course(opened, total, data.labels, reading))


def settings_of(
    ready: Ready, data: datasets.DataSpec, options: merging.MergeOptions, backend: str | None
) -> dict[str, Any]:
    """Return all that partial sums depend on besides r: only those of equal settings add up."""
    loaded, course = ready.loaded, ready.course
    machine = results.machine(loaded, course.amp)
    return {
        "model": loaded.name,
        "precision": machine["precision"],  # in front of the weights, which are cast to it
        "weights": weights_of(loaded.model),
        "data": str(data.root.resolve()) if data.root else "",
        "dataset": data.dataset,
        "split": data.split,
        "labels": data.labels,
        "files": None if course.total is None else datasets.fingerprint(course.data),
        "batch_size": course.reading.batch_size,
        "torchcompile": backend,
        **asdict(loaded.config),
        **asdict(replace(options, matching=None)),
        "matching": options.matching and identity_of(options.matching),
        **{key: machine[key] for key in ("tome_fx", "torch", "device_name")},
    }


def run(
    ready: Ready,
    settings: dict[str, Any],
    file: Path | None,
    resume: bool,
    processes: Processes,
) -> evaluate.Progress:
    """Return the sums of each r over all images; those in `file` are not computed again."""
    course = ready.course
    file = file if processes.first and course.total is not None else None
    kept = partial.load(file, settings, course.total or 0) if file and resume else {}
    names = [contender.r for contender in ready.found]
    # The first process alone has read the file: it tells the others.
    begun = [value for name in names for value in kept.get(name, Sums()).values()]
    rows = processes.total(begun)
    width = len(Sums().values())
    progress = {
        name: Sums.of(rows[index * width : (index + 1) * width]) for index, name in enumerate(names)
    }
    left = evaluate.segments(progress, course.total)
    stride = course.reading.batch_size * processes.world
    steps = [segment.steps(stride) for segment in left]
    if not left:
        return progress

    def keep(now: evaluate.Progress) -> None:
        if file:
            # An r of an earlier run stays, for a later one that asks for it again.
            partial.save(file, settings, {**kept, **now})

    with console.stage("warming up", after=console.PATIENT):
        evaluate.warm_up(ready.found, ready.loaded, course)
    total = None if None in steps else sum(step or 0 for step in steps)
    shown = console.stage(f"validating {ready.loaded.name}", total)
    with shown if processes.first else nullcontext(lambda note="": None) as advance:
        return evaluate.evaluate(ready.found, course, progress, processes, keep, advance)


def scores_of(ready: Ready, data: datasets.DataSpec, sums: evaluate.Progress) -> list[Score]:
    """Return a line of results for each r, the original first."""
    config = ready.loaded.config
    around = {
        "model": ready.loaded.name,
        "batch_size": ready.course.reading.batch_size,
        "param_count": round(sum(p.numel() for p in ready.loaded.model.parameters()) / 1e6, 2),
        "img_size": config.input_size[-1],
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
    }
    return [score(c.r, c.ratio, sums[c.r], data.labels, around) for c in ready.found]
