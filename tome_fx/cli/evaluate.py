"""Original and merged versions over a data set, batch by batch in turn, in one pass."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tome_fx.cli import datasets, merging
from tome_fx.cli.console import Advance
from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.models import Loaded
from tome_fx.cli.processes import Processes
from tome_fx.cli.scores import BASE, Sums, count
from tome_fx.measuring.machine import synchronize

Progress = Mapping[str, Sums]


@dataclass(frozen=True)
class Contender:
    """A model to look at: the original (r is BASE) or a merged one. `ratio` is that of MACs."""

    r: str
    ratio: float
    module: nn.Module


@dataclass(frozen=True)
class Course:
    """What the run is over. `total` is None for a stream, which says its length at its end."""

    data: Any
    total: int | None
    labels: bool
    reading: datasets.Reading
    amp: torch.dtype | None = None
    every: int = 10  # batches between two times that sums are put together and kept
    world: int = 1
    fill: bool = False  # give compiled programs batches of one size only

    @property
    def full(self) -> int:
        """The size of batches that are timed: that of all but perhaps the last."""
        size = self.reading.batch_size
        return size if self.total is None else min(size, math.ceil(self.total / self.world))


@dataclass(frozen=True)
class Segment:
    """Images from `start` to before `stop` (None: all of a stream), for these values of r."""

    start: int
    stop: int | None
    rs: tuple[str, ...]

    def steps(self, images: int) -> int | None:
        """Return how many steps of so many images there are."""
        return None if self.stop is None else math.ceil((self.stop - self.start) / images)


def contenders(
    loaded: Loaded, rs: Mapping[str, Any], options: merging.MergeOptions
) -> list[Contender]:
    """Return the original and one merged program for each r, all on the same weights.

    The model is captured once. Raises ConfigError for an r that cannot be.
    """
    found = [Contender(BASE, 1.0, loaded.model)]
    fast: Any = None
    for text, r in rs.items():
        if fast is None:
            fast = merging.transform(loaded, r, options)
        else:
            fast.r = r
        # A new plan gives `fast` a new graph; this one stays as it is in a module of its own.
        found.append(Contender(text, fast.report.flop_ratio, GraphModule(fast, fast.graph)))
    return found


def check_backend(backend: str | None) -> None:
    """Raise CliError for the backend that merges, in the original too."""
    if backend == "tome_fx":
        raise CliError(
            "--torchcompile tome_fx: it would merge in the original too, which is what --r is "
            "compared with; take inductor"
        )


def compiled(found: Sequence[Contender], backend: str | None) -> list[Contender]:
    """Return the contenders under torch.compile; as they are without a backend.

    Raises CliError for a backend that does not exist.
    """
    if backend is None:
        return list(found)
    try:
        done = [cast(nn.Module, torch.compile(c.module, backend=backend)) for c in found]
    except Exception as error:
        raise CliError(f"--torchcompile {backend}: {one_line(error, 200)}") from error
    return [replace(c, module=module) for c, module in zip(found, done, strict=True)]


def many_programs(backend: str | None) -> contextlib.AbstractContextManager[object]:
    """Let torch.compile keep them all: they may share an entry point, and none may be eager."""
    if backend is None:
        return contextlib.nullcontext()
    patch: contextlib.AbstractContextManager[object] = torch._dynamo.config.patch(
        recompile_limit=64
    )
    return patch


def call(module: nn.Module, x: Tensor, amp: torch.dtype | None) -> Tensor:
    """Return the logits [B, K] of a batch [B, C, H, W]. Raises CliError for other outputs."""
    cast = torch.autocast(x.device.type, amp) if amp else contextlib.nullcontext()
    with torch.inference_mode(), cast:
        logits = module(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CliError(f"the model's output is {shape}, not one row of logits for each image")
    return logits


def warm_up(found: Sequence[Contender], loaded: Loaded, course: Course) -> None:
    """Run each once, which is where compiling happens. Raises CliError where that fails."""
    x = loaded.example(course.full)
    for contender in found:
        try:
            call(contender.module, x, course.amp)
        except CliError:
            raise
        except Exception as error:
            if hasattr(contender.module, "_orig_mod"):
                raise CliError(f"--torchcompile: {one_line(error, 200)}") from error
            raise


def segments(progress: Progress, total: int | None) -> list[Segment]:
    """Return what is left to do, in order. An r that was begun joins where it was left."""
    if total is None:
        return [Segment(0, None, tuple(progress))]
    starts = sorted({sums.images for sums in progress.values() if sums.images < total})
    return [
        Segment(start, stop, tuple(r for r, sums in progress.items() if sums.images <= start))
        for start, stop in zip(starts, [*starts, total][1:], strict=True)
    ]


def evaluate(
    found: Sequence[Contender],
    course: Course,
    progress: Progress,
    processes: Processes,
    keep: Callable[[Progress], None],
    advance: Advance,
) -> Progress:
    """Return the sums of each r over all images, going on from `progress`.

    Each process takes every `world`-th image, none twice. `keep` gets the sums of all processes
    every so many batches; `advance` is called for each batch.
    """
    stride = course.reading.batch_size * processes.world
    for segment in segments(progress, course.total):
        parts: dict[str, Sums] = {}
        for number, batch in enumerate(_batches(segment, course, processes), 1):
            if batch is not None:
                for r, sums in _compare(found, segment.rs, batch, course).items():
                    parts[r] = parts.get(r, Sums()) + sums
            if number % course.every == 0 or number == segment.steps(stride):
                progress, parts = _together(progress, parts, segment.rs, processes), {}
                keep(progress)
            advance(note(progress))
        if parts:  # a stream does not say that it is about to end
            progress = _together(progress, parts, segment.rs, processes)
    return progress


def note(progress: Progress) -> str:
    """Return in a few words how the largest merging does so far."""
    r, sums = list(progress.items())[-1]
    return f"r={r}, agreement {sums.agree / sums.images:.2%}" if sums.images else ""


def _batches(
    segment: Segment, course: Course, processes: Processes
) -> Iterator[tuple[Tensor, Tensor] | None]:
    """Yield this process's batches; None where others have one more than this one."""
    steps = segment.steps(course.reading.batch_size * processes.world)
    indices = None
    if segment.stop is not None:
        indices = range(segment.start + processes.rank, segment.stop, processes.world)
    loader = datasets.batches(course.data, indices, course.labels, course.reading)
    if steps is None:
        yield from loader
        return
    for _ in range(steps):
        yield next(loader, None)


def _compare(
    found: Sequence[Contender],
    rs: Sequence[str],
    batch: tuple[Tensor, Tensor],
    course: Course,
) -> dict[str, Sums]:
    """Return the sums of one batch for each r. The original runs always: it is what to equal."""
    x, targets = batch
    given = filled(x, course.full) if course.fill else x
    original: Tensor | None = None
    result = {}
    for contender in found:
        if contender.r != BASE and contender.r not in rs:
            continue
        synchronize(x.device)
        start = time.perf_counter()
        logits = call(contender.module, given, course.amp)[: len(x)]
        synchronize(x.device)
        seconds = time.perf_counter() - start
        if original is None:
            original = logits
            _check_targets(targets, logits, course)
        if contender.r in rs:
            sums = count(logits, original, targets if course.labels else None)
            timed = len(x) == course.full
            result[contender.r] = replace(sums, timed=len(x), seconds=seconds) if timed else sums
    return result


def filled(x: Tensor, size: int) -> Tensor:
    """Return the batch [B, C, H, W] with its last image repeated up to `size` images.

    Images of a batch do not see each other, and another size would be compiled anew.
    """
    missing = max(0, size - len(x))
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


def _check_targets(targets: Tensor, logits: Tensor, course: Course) -> None:
    if not course.labels:
        return
    wrong = targets[(targets < 0) | (targets >= logits.shape[1])]
    if len(wrong):
        raise CliError(
            f"an image has class {int(wrong[0])}, the model has {logits.shape[1]} (--labels none)"
        )


def _together(
    progress: Progress, parts: Progress, rs: Sequence[str], processes: Processes
) -> dict[str, Sums]:
    """Return the sums with those of all processes added; times are a process's share."""
    rows = [parts.get(r, Sums()).values() for r in rs]
    flat = processes.total([value for row in rows for value in row])
    width = len(Sums().values())
    result = dict(progress)
    for index, r in enumerate(rs):
        sums = Sums.of(flat[index * width : (index + 1) * width])
        # The processes run side by side: their mean time is that of the whole.
        sums = replace(sums, seconds=sums.seconds / processes.world)
        result[r] = progress[r] + sums
    return result
