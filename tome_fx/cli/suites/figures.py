"""The figures of one case: speed, peak memory, the time that a transform takes, or steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tome_fx
from tome_fx.capturing.examples import given_example
from tome_fx.cli import memory, merging
from tome_fx.cli.console import stage
from tome_fx.cli.measure import GIGA, MEBI, Settings, measure, subjects
from tome_fx.cli.models import Loaded, ModelSpec
from tome_fx.cli.options import parse_r
from tome_fx.cli.steps import in_mode, step_of
from tome_fx.cli.suites.cases import EAGER, INFERENCE, Case
from tome_fx.cli.suites.steps import rows_of
from tome_fx.locating import LOCK
from tome_fx.passes.capture import capture
from tome_fx.passes.locate import locate
from tome_fx.passes.normalize import normalize


@dataclass(frozen=True)
class Setup:
    """What all cases of a run have in common. `amp` is the dtype of autocast, or None."""

    device: str
    precision: str
    amp: torch.dtype | None
    rounds: int | None
    warmup: int


def figures(kind: str, case: Case, setup: Setup) -> list[dict[str, Any]]:
    """Return the rows of a case, figures by their columns: one, or one for each step of a layer.

    All rows of a kind have the same columns.
    """
    kwargs = [] if case.depth is None else [f"depth={case.depth}"]
    spec = ModelSpec(
        case.model,
        img_size=case.img_size,
        model_kwargs=kwargs,
        device=setup.device,
        precision=setup.precision,
    )
    loaded = merging.load_quietly(spec)
    if kind == "transform":
        return [_transform(loaded, case, setup)]
    torch._dynamo.reset()  # programs of the case before would fill the caches of this one
    if case.grad != INFERENCE:
        loaded.model.requires_grad_(True)
    fast = merging.transform(loaded, parse_r(case.r), merging.MergeOptions())
    if kind == "steps":
        return rows_of(loaded, fast, case, setup.rounds or case.rounds, setup.warmup)
    made = _speed if kind == "speed" else _memory
    return [_sizes(fast.report) | made(loaded, fast, case, setup)]


def _sizes(report: tome_fx.Report) -> dict[str, Any]:
    return {
        "tokens": report.blocks[0].tokens_in,
        "tokens_out": report.blocks[-1].tokens_out,
        "original_gmacs": report.macs_before / GIGA,
        "transformed_gmacs": report.macs_after / GIGA,
        "flop_ratio": report.flop_ratio,
    }


def _speed(loaded: Loaded, fast: Any, case: Case, setup: Setup) -> dict[str, Any]:
    settings = Settings(
        case.batch_size,
        (EAGER,) if case.mode == EAGER else ("compiled",),
        setup.rounds or case.rounds,
        setup.warmup,
        setup.amp,
        # Under CUDA graphs a pass allocates nothing: their pools are filled beforehand. That of
        # training is measured without the gradients of the step before.
        memory=case.mode in (EAGER, "default") and case.grad == INFERENCE,
        compile_mode=case.mode,
        train=case.grad != INFERENCE,
    )
    before, after = measure(loaded, subjects(loaded, {case.r: fast}), settings)
    named: dict[str, Any] = {}
    for name, row in (("original", before), ("transformed", after)):
        named |= {
            f"{name}_ms": row.median_ms,
            f"{name}_iqr_ms": row.iqr_ms,
            f"{name}_samples_per_sec": row.samples_per_sec,
            f"{name}_peak_mib": row.peak_memory_mib,
            f"{name}_compile_s": row.compile_s,
        }
    return named | {
        "ratio": after.speedup,
        "ratio_q1": after.speedup_q1,
        "ratio_q3": after.speedup_q3,
        "share": after.flop_ratio_share,
        "rounds": settings.rounds,
        "warmup": settings.warmup,
    }


def _memory(loaded: Loaded, fast: Any, case: Case, setup: Setup) -> dict[str, Any]:
    x = loaded.example(case.batch_size)
    peaks = {}
    for name, module in (("original", loaded.model), ("transformed", fast)):
        with stage(f"measuring memory, {name}"):
            bytes_ = peak_of(module, x, case, setup.amp)
        peaks[f"{name}_peak_mib"] = None if bytes_ is None else bytes_ / MEBI
    before, after = peaks.values()
    return peaks | {"memory_ratio": before / after if before and after else None}


def peak_of(module: nn.Module, x: Tensor, case: Case, amp: torch.dtype | None) -> int | None:
    """Return the bytes that a pass holds at most; in training with backward and all gradients."""
    train = case.grad != INFERENCE
    run = module if case.mode == EAGER else torch.compile(module, mode=case.mode)
    step = step_of(run, module, x, train=train, amp=amp)
    with in_mode(module, train):
        step()  # compiles, and fills what is kept between calls
        module.zero_grad(set_to_none=True)
        return memory.peak(step, x.device)


def _transform(loaded: Loaded, case: Case, setup: Setup) -> dict[str, Any]:
    """Seconds of transform() and of its parts; medians, after one that does not count."""
    example = (loaded.example(case.batch_size),)
    r = parse_r(case.r)

    def whole() -> Any:
        return tome_fx.transform(loaded.model, r, example_inputs=example, min_ratio=0)

    with stage(f"transforming, depth {case.depth}"):
        fast = whole()
        rounds = range(setup.rounds or case.rounds)
        totals = [_seconds(whole) for _ in rounds]
        parts = [_parts(loaded.model, example, fast) for _ in rounds]
    captured, located, rewritten = (statistics.median(part) for part in zip(*parts, strict=True))
    return {
        "nodes_before": len(fast.located.program.graph.nodes),
        "nodes_after": len(fast.graph.nodes),
        "transform_s": statistics.median(totals),
        "capture_s": captured,
        "locate_s": located,
        "rewrite_s": rewritten,
        "rounds": len(rounds),
    }


def _parts(model: nn.Module, example: tuple[Tensor], fast: Any) -> tuple[float, float, float]:
    """Seconds of capture; of normalize and locate; of plan, lift, lower and verify."""
    with LOCK, torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        start = time.perf_counter()
        program = capture(model, given_example(example, None))
        captured = time.perf_counter()
        normalize(program.graph)
        locate(program, fast.settings.rules)
        located = time.perf_counter()

    def again() -> None:
        fast.r = fast.r

    return captured - start, located - captured, _seconds(again)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
