"""`tome-fx profile`: what each step of each layer takes, and how far that is from its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tome_fx.cli import console, merging, results, tables
from tome_fx.cli import options as o
from tome_fx.cli.bench import BatchSize
from tome_fx.cli.console import stage
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import FileFlags, MergeFlags, NamedModelFlags, grouped, told
from tome_fx.cli.models import DTYPES, Loaded
from tome_fx.profiling.kernels import Kernel, kernels
from tome_fx.profiling.profile import Line, Profile
from tome_fx.profiling.profile import profile as profiled
from tome_fx.profiling.roofline import Roofline
from tome_fx.profiling.roofline import measure as measure_roofline
from tome_fx.profiling.steps import ADDED, STEPS

Rounds = Annotated[int, typer.Option("--num-bench-iter", help="Passes that count.", min=1)]
Warmup = Annotated[int, typer.Option("--num-warm-iter", help="Passes that do not.", min=0)]
Layers = Annotated[bool, typer.Option("--layers/--no-layers", help="Also a table by layer.")]
Compiled = Annotated[
    bool, typer.Option("--compiled", help="Also list the kernels of the compiled program.")
]
SHOWN = 16  # kernels


@grouped()
def profile(
    *,
    model: NamedModelFlags,
    r: o.R = "16",
    merge: MergeFlags,
    file: FileFlags,
    batch_size: BatchSize = 8,
    num_bench_iter: Rounds = 5,
    num_warm_iter: Warmup = 2,
    layers: Layers = True,
    compiled: Compiled = False,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    precision: o.Precision = "float32",
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time each op of the original's and the merged program, eagerly, and sum up by step.

    Beside each time stand multiply-accumulates and bytes, and the least time that this machine
    would need for them: the larger of both at the rates of a matrix product and of a copy,
    measured at the start.
    """
    if precision not in DTYPES:
        raise CliError(f"--precision {precision}: not one of {', '.join(DTYPES)}")
    kind, path, steps = file.kind(), file.results_file, o.parse_r(r)
    spec = model.spec(device, precision)
    if threads:
        torch.set_num_threads(threads)
    options = merge.options()
    loaded = merging.load_quietly(spec)
    with stage("measuring the machine"):
        roofline = measure_roofline(loaded.device, loaded.dtype)
    modules = {
        one: merging.transform(loaded, o.parse_r(one), options)
        for one in dict.fromkeys(("0", o.show_r(steps)))
    }
    x = loaded.example(batch_size)
    with stage("profiling, in turn", len(modules) * (num_bench_iter + num_warm_iter)) as advance:
        found = profiled(modules, x, roofline, num_bench_iter, num_warm_iter, advance)
    listed = {}
    if compiled:
        with stage("compiling and profiling kernels"):
            listed = kernels(modules, x, num_bench_iter)
    records = [_record(loaded, batch_size, run, line) for run in found for line in run.lines]
    around = _around(loaded, roofline, num_bench_iter, num_warm_iter)
    around |= {"flags": told(model, merge)}
    if path:
        results.write_records(path, kind, records, around)
    if path and compiled:
        results.write_records(_beside(path), kind, _kernel_records(listed), around)
    if as_json:
        fused = {"kernels": _kernel_records(listed)} if compiled else {}
        console.print_json({"environment": around, "results": records} | fused)
        return
    for run in found:
        tell(run, layers)
        if compiled:
            tell_kernels(listed[run.r])
    print(
        f"{results.told(around)}, batch {batch_size}; eager, op by op, medians of"
        f" {num_bench_iter}; {roofline.macs / 1e9:.0f} GMAC/s, {roofline.bandwidth / 1e9:.1f} GB/s"
    )
    if path:
        print(f"saved: {path}")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-kernels{path.suffix}")


def _kernel_records(listed: Mapping[str, Sequence[Kernel]]) -> list[dict[str, Any]]:
    return [
        {"r": r, "kernel": row.name, "calls": row.calls, "ms": float(f"{row.ms:.6g}")}
        for r, rows in listed.items()
        for row in rows
    ]


def tell_kernels(rows: Sequence[Kernel]) -> None:
    """Print the slowest kernels of a compiled program."""
    whole = sum(row.ms for row in rows)
    print(f"compiled: {whole:.1f} ms in all kernels")
    lines = [("kernel", "calls", "ms", "share")]
    lines += [
        (row.name[:70], f"{row.calls:g}", f"{row.ms:.2f}", f"{row.ms / whole:.1%}")
        for row in rows[:SHOWN]
    ]
    tables.print_lines(lines, console.out(), left=1)


def _record(loaded: Loaded, batch_size: int, run: Profile, line: Line) -> dict[str, Any]:
    size = "x".join(str(side) for side in loaded.config.input_size[1:])
    named = {"model": loaded.name, "r": run.r, "batch_size": batch_size, "img_size": size}
    values = asdict(line)
    texts = {name: f"{values[name]:.6g}" for name in ("ms", "bound_ms")}
    return named | values | {name: float(text) for name, text in texts.items()}


def _around(loaded: Loaded, roofline: Roofline, rounds: int, warmup: int) -> dict[str, Any]:
    return results.machine(loaded, None) | {
        "rounds": rounds,
        "warmup": warmup,
        "peak_gmacs_per_s": round(roofline.macs / 1e9, 1),
        "peak_gb_per_s": round(roofline.bandwidth / 1e9, 2),
        "weights": loaded.weights,
    }


def tell(run: Profile, layers: bool) -> None:
    """Print the steps of a profile, and what they take in each layer."""
    whole = run.whole_ms
    name = "original (r=0)" if run.r == "0" else f"r={run.r}"
    print(f"{name}: {whole:.1f} ms in all steps")
    lines = [("step", "calls", "ms", "share", "GMAC", "MiB", "bound ms", "times bound")]
    for line in run.by_step():
        lines.append(
            (
                line.step,
                str(line.nodes),
                f"{line.ms:.2f}",
                f"{line.ms / whole:.1%}",
                f"{line.macs / 1e9:.2f}",
                f"{line.moved / 2**20:.1f}",
                f"{line.bound_ms:.2f}",
                f"{line.ms / line.bound_ms:.1f}" if line.bound_ms else "-",
            )
        )
    tables.print_lines(lines, console.out(), left=1)
    if layers:
        tables.print_lines(_by_layer(run.lines), console.out(), left=1)


def _by_layer(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Milliseconds by layer and step; steps that nothing was spent on are left out."""
    steps = [step for step in STEPS if any(line.step == step for line in lines)]
    table = [("layer", *steps, "added")]
    for layer in dict.fromkeys(line.layer for line in lines):
        ms = {line.step: line.ms for line in lines if line.layer == layer}
        added = sum(ms.get(step, 0.0) for step in ADDED)
        table.append((layer, *(f"{ms.get(step, 0.0):.2f}" for step in steps), f"{added:.2f}"))
    return table
