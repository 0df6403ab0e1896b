"""The steps of a pass, original and merged: rows by layer, and their sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import tome_fx
from tome_fx.cli import merging
from tome_fx.cli.console import stage
from tome_fx.cli.models import Loaded
from tome_fx.cli.options import parse_r
from tome_fx.cli.suites.cases import Case
from tome_fx.cli.suites.rows import Record, by_case
from tome_fx.profiling.profile import profile
from tome_fx.profiling.roofline import measure
from tome_fx.profiling.steps import ADDED, STEPS

ORIGINAL, MERGED = "original", "merged"


def rows_of(
    loaded: Loaded, fast: tome_fx.ToMeModule, case: Case, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """Profile a case and return a row for each step of each layer of both programs."""
    with stage("measuring the machine"):
        roofline = measure(loaded.device, loaded.dtype)
    modules = {ORIGINAL: merging.transform(loaded, parse_r("0"), merging.MergeOptions())}
    modules |= {MERGED: fast}
    x = loaded.example(case.batch_size)
    with stage("profiling, in turn", len(modules) * (rounds + warmup)) as advance:
        found = profile(modules, x, roofline, rounds, warmup, advance)
    around = {
        "rounds": rounds,
        "warmup": warmup,
        "peak_gmacs_per_s": roofline.macs / 1e9,
        "peak_gb_per_s": roofline.bandwidth / 1e9,
    }
    return [{"program": run.r, **asdict(line), **around} for run in found for line in run.lines]


def milliseconds(rows: Iterable[Record], program: str) -> dict[str, float]:
    """Return what each step of a program takes over all layers, in the order of STEPS."""
    own = [row for row in rows if row["program"] == program]
    return {step: sum(float(row["ms"]) for row in own if row["step"] == step) for step in STEPS}


def summed(all_rows: Iterable[Record]) -> list[Record]:
    """Return a line for each case: both times, and the share of each step in the merged one's."""
    lines = []
    for rows in by_case(all_rows).values():
        before, after = (milliseconds(rows, program) for program in (ORIGINAL, MERGED))
        whole = sum(after.values())
        shares = after | {"added": sum(after[step] for step in ADDED)}
        lines.append(
            {name: rows[0][name] for name in ("model", "r", "batch_size")}
            | {"original_ms": f"{sum(before.values()):.4g}", "merged_ms": f"{whole:.4g}"}
            | {step: f"{ms / whole:.1%}" for step, ms in shares.items()}
        )
    return lines
