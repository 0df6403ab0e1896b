"""`tome-fx bench`: original against transformed, in turn, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from tome_fx.cli import console, merging, results, tables
from tome_fx.cli import options as o
from tome_fx.cli.failure import CliError
from tome_fx.cli.measure import Settings, by_r, measure, passes, subjects
from tome_fx.cli.models import DTYPES, ModelSpec
from tome_fx.cli.suites import run as suites
from tome_fx.cli.suites.cases import CPU
from tome_fx.cli.suites.figures import Setup

Rs = Annotated[
    str,
    typer.Option("--r", help="As of explain, and several with commas: 8,13,16.",
                 rich_help_panel=o.MERGING),
]  # fmt: skip
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Images a batch.", min=1)]
Rounds = Annotated[
    int | None, typer.Option("--num-bench-iter", help="Rounds; 10 on a CPU, else 40.", min=1)
]
Warmup = Annotated[
    int | None, typer.Option("--num-warm-iter", help="Warm-up; 2 on a CPU, else 10.", min=0)
]
Eager = Annotated[bool, typer.Option("--eager/--no-eager", help="Time without torch.compile.")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Time torch.compile.")]
Memory = Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory.")]
File = Annotated[Path | None, typer.Option(help="Where to write the results (.csv, .json).")]
Format = Annotated[str | None, typer.Option(help="csv or json; by the file's suffix.")]
SUITE = "Suites"
Names = Annotated[
    str | None,
    typer.Option("--suite", metavar="[NAMES]", rich_help_panel=SUITE,
                 help=f"Run suites; all, or some of {','.join(CPU)}."),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option("--out", rich_help_panel=SUITE,
                 help="Folder of a suite's files; docs/benchmarks in a clone, else outputs."),
]  # fmt: skip
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure again what has a row.", rich_help_panel=SUITE)
]
Plots = Annotated[
    bool, typer.Option("--plots/--no-plots", help="Draw suites (SVG).", rich_help_panel=SUITE)
]


def bench(
    model_argument: o.ModelArgument = None,
    model: o.ModelName = None,
    r: Rs = "16",
    batch_size: BatchSize = 8,
    num_bench_iter: Rounds = None,
    num_warm_iter: Warmup = None,
    eager: Eager = True,
    compiled: Compile = True,
    memory: Memory = True,
    results_file: File = None,
    results_format: Format = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    precision: o.Precision = "float32",
    amp: Annotated[bool, typer.Option("--amp", help="The same as --precision amp.")] = False,
    amp_dtype: o.AmpDtype = "bfloat16",
    prop_attn: o.Prop = True,
    capture: o.Capture = "auto",
    rounding: o.Rounding = "truncate",
    strict: o.Strict = False,
    every: o.Every = 1,
    align: o.Align = "1",
    matching: o.Matching = None,
    pretrained: o.Pretrained = False,
    checkpoint: o.Checkpoint = None,
    img_size: o.ImgSize = None,
    num_classes: o.NumClasses = None,
    in_chans: o.InChans = None,
    model_kwargs: o.ModelKwargs = None,
    suite: Names = None,
    out: Out = None,
    fresh: Fresh = False,
    plots: Plots = True,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a model and its transformed versions: medians, spread, throughput, memory."""
    precision = "amp" if amp else precision
    if threads:
        torch.set_num_threads(threads)
    rounds, warmup = passes(device, num_bench_iter, num_warm_iter)
    if suite:
        cast = autocast_dtype(precision, amp_dtype)
        setup = Setup(device, precision, cast, num_bench_iter, warmup)
        for path in suites.run(suite, setup, out, fresh, model_argument or model, plots):
            print(f"saved: {path}")
        return
    modes = tuple(name for name, on in (("eager", eager), ("compiled", compiled)) if on)
    if not modes:
        raise CliError("--no-eager --no-compile: nothing is left to time")
    rs = o.parse_rs(r)
    kind = results.choose_format(results_file, results_format)
    spec = ModelSpec(
        o.model_name(model_argument, model),
        pretrained,
        checkpoint,
        img_size,
        num_classes,
        in_chans,
        model_kwargs or (),
        device,
        precision,
    )
    settings = Settings(
        batch_size,
        modes,
        rounds=rounds,
        warmup=warmup,
        amp=autocast_dtype(precision, amp_dtype),
        memory=memory,
    )
    loaded = merging.load_quietly(spec)
    options = merging.MergeOptions(
        prop_attn,
        capture,
        rounding,
        strict,
        every=every,
        align=o.parse_align(align),
        matching=merging.matching_of(matching),
    )
    fast = {text: merging.transform(loaded, one, options) for text, one in by_r(rs).items()}
    rows = measure(loaded, subjects(loaded, fast), settings)
    around = results.environment(loaded, settings) | {"matching": matching or ""}
    if results_file:
        results.write(results_file, kind, rows, around)
    if as_json:
        console.print_json(results.document(rows, around))
        return
    tables.print_results(rows, console.out())
    print(
        f"{results.told(around)}, batch {batch_size}; medians of {settings.rounds} rounds in turn"
    )
    if results_file:
        print(f"saved: {results_file}")


def autocast_dtype(precision: str, name: str) -> torch.dtype | None:
    """Return the dtype of autocast, or None without it. Raises CliError for another name."""
    if name not in ("bfloat16", "float16"):
        raise CliError(f"--amp-dtype {name}: not one of bfloat16, float16")
    return DTYPES[name] if precision == "amp" else None
