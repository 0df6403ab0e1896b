"""Original against transformed, eager and compiled, in one process and in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tome_fx.cli import memory
from tome_fx.cli.console import stage
from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.models import Loaded
from tome_fx.cli.options import show_r
from tome_fx.cli.steps import in_mode, step_of
from tome_fx.measuring.machine import synchronize
from tome_fx.measuring.timing import Timing, interleaved, paired_speedup, speedup

ORIGINAL = "original"
GIGA = 1e9
MEBI = 2.0**20


@dataclass(frozen=True)
class Subject:
    """One model to time: the original (r is empty) or a transformed one."""

    r: str
    module: nn.Module
    macs: int

    @property
    def name(self) -> str:
        """`original`, or r as the user wrote it."""
        return f"r={self.r}" if self.r else ORIGINAL


@dataclass(frozen=True)
class Settings:
    """How to measure. `amp` is the dtype of autocast, or None; `compile_mode` torch.compile's.

    `train` is for steps of training, forward and backward, in place of inference.
    """

    batch_size: int
    modes: tuple[str, ...] = ("eager", "compiled")
    rounds: int = 10
    warmup: int = 2
    amp: torch.dtype | None = None
    min_sample: float = 0.05
    memory: bool = True
    compile_mode: str = "default"
    train: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the results; times are those of one batch, GMACs those of one image."""

    model: str
    r: str
    mode: str
    batch_size: int
    img_size: str
    median_ms: float
    q1_ms: float
    q3_ms: float
    iqr_ms: float
    min_ms: float
    samples_per_sec: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    gmacs: float
    flop_ratio: float
    flop_ratio_share: float
    peak_memory_mib: float | None
    compile_s: float | None


def passes(device: str, rounds: int | None, warmup: int | None) -> tuple[int, int]:
    """Return rounds and warm-up as given, or what a type of device needs: a CPU is slow."""
    usual = (10, 2) if device == "cpu" else (40, 10)
    return rounds or usual[0], usual[1] if warmup is None else warmup


def subjects(loaded: Loaded, transformed: Mapping[str, Any]) -> list[Subject]:
    """Return the original first, then the transformed models by their r."""
    reports = [module.report for module in transformed.values()]
    original = Subject("", loaded.model, reports[0].macs_before)
    return [original] + [
        Subject(r, module, module.report.macs_after) for r, module in transformed.items()
    ]


def by_r(rs: Sequence[Any]) -> dict[str, Any]:
    """Return values of r by the text that names them."""
    return {show_r(r): r for r in rs}


def measure(loaded: Loaded, models: Sequence[Subject], settings: Settings) -> list[Row]:
    """Return a row for each model and mode. All of them get the same input and treatment.

    Raises CliError where torch.compile cannot work on this machine.
    """
    x = loaded.example(settings.batch_size)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    compile_s: dict[tuple[str, str], float] = {}
    with contextlib.ExitStack() as stack:
        # Every transformed model may share one entry point: none may fall back to eager for it.
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=64))
        for model in models:
            stack.enter_context(in_mode(model.module, settings.train))
            for mode in settings.modes:
                key = model.name, mode
                calls[key], compile_s[key] = _prepare(model, mode, x, settings)
        timings = _time(calls, settings, loaded.device)
        peaks = {key: _peak(call, settings, loaded.device) for key, call in calls.items()}
    rows = []
    for mode in settings.modes:
        for model in models:
            key, base = (model.name, mode), timings[ORIGINAL, mode]
            ratio = models[0].macs / model.macs
            seconds = compile_s[key] if mode == "compiled" else None
            found = timings[key]
            rows.append(
                _row(loaded, model, mode, settings, found, base, ratio, peaks[key], seconds)
            )
    return rows


def _prepare(
    model: Subject, mode: str, x: Tensor, settings: Settings
) -> tuple[Callable[[], object], float]:
    """Return a call and how long its first run took, which is where compiling happens."""
    compiled = mode == "compiled"
    module: Callable[[Tensor], Tensor] = model.module
    if compiled:
        module = torch.compile(module, mode=settings.compile_mode)
    call = step_of(module, model.module, x, train=settings.train, amp=settings.amp)
    start = time.perf_counter()
    with stage(f"{'compiling' if compiled else 'running'} {model.name}"):
        try:
            call()
        except Exception as error:
            if not compiled:
                raise
            text = one_line(error, 200)
            raise CliError(
                f"torch.compile failed on {model.name}: {text} (--no-compile)"
            ) from error
    return call, time.perf_counter() - start


def _time(
    calls: Mapping[tuple[str, str], Callable[[], object]],
    settings: Settings,
    device: torch.device,
) -> dict[tuple[str, str], Timing]:
    named = {"|".join(key): call for key, call in calls.items()}
    total = (settings.rounds + settings.warmup) * len(calls)
    with stage("timing, in turn", total) as advance:
        timings = interleaved(
            named,
            settings.rounds,
            settings.warmup,
            synchronize=lambda: synchronize(device),
            min_sample=settings.min_sample,
            progress=advance,
        )
    return {key: timings["|".join(key)] for key in calls}


def _peak(call: Callable[[], object], settings: Settings, device: torch.device) -> float | None:
    if not settings.memory:
        return None
    with stage("measuring memory"):
        found = memory.peak(call, device)
    return None if found is None else found / MEBI


def _row(
    loaded: Loaded,
    model: Subject,
    mode: str,
    settings: Settings,
    timing: Timing,
    base: Timing,
    ratio: float,
    peak: float | None,
    compile_s: float | None,
) -> Row:
    first, third = (seconds * 1e3 for seconds in timing.quartiles)
    low, high = paired_speedup(base, timing).quartiles
    faster = speedup(base, timing)
    return Row(
        model=loaded.name,
        r=model.r,
        mode=mode,
        batch_size=settings.batch_size,
        img_size="x".join(str(side) for side in loaded.config.input_size[1:]),
        median_ms=timing.median * 1e3,
        q1_ms=first,
        q3_ms=third,
        iqr_ms=timing.iqr * 1e3,
        min_ms=min(timing.samples) * 1e3,
        samples_per_sec=settings.batch_size / timing.median,
        speedup=faster,
        speedup_q1=low,
        speedup_q3=high,
        gmacs=model.macs / GIGA,
        flop_ratio=ratio,
        flop_ratio_share=faster / ratio,
        peak_memory_mib=peak,
        compile_s=compile_s,
    )
