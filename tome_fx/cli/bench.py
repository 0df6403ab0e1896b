"""`tome-fx bench`: original against transformed, in turn, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tome_fx.cli import console, merging, results, tables
from tome_fx.cli import options as o
from tome_fx.cli.failure import CliError
from tome_fx.cli.flags import FileFlags, MergeFlags, NamedModelFlags, RunFlags, grouped, told
from tome_fx.cli.measure import Settings, by_r, measure, passes, subjects
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


@grouped()
def bench(
    *,
    model: NamedModelFlags,
    r: Rs = "16",
    merge: MergeFlags,
    running: RunFlags,
    file: FileFlags,
    batch_size: BatchSize = 8,
    num_bench_iter: Rounds = None,
    num_warm_iter: Warmup = None,
    eager: Eager = True,
    compiled: Compile = True,
    memory: Memory = True,
    suite: Names = None,
    out: Out = None,
    fresh: Fresh = False,
    plots: Plots = True,
    as_json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a model and its transformed versions: medians, spread, throughput, memory."""
    running.set_threads()
    rounds, warmup = passes(running.device, num_bench_iter, num_warm_iter)
    if suite:
        setup = Setup(running.device, running.kind, running.autocast(), num_bench_iter, warmup)
        alone = model.model_argument or model.model
        for path in suites.run(suite, setup, out, fresh, alone, plots):
            print(f"saved: {path}")
        return
    modes = tuple(name for name, on in (("eager", eager), ("compiled", compiled)) if on)
    if not modes:
        raise CliError("--no-eager --no-compile: nothing is left to time")
    rs = o.parse_rs(r)
    kind = file.kind()
    spec = model.spec(running.device, running.kind)
    settings = Settings(
        batch_size,
        modes,
        rounds=rounds,
        warmup=warmup,
        amp=running.autocast(),
        memory=memory,
    )
    options = merge.options()
    loaded = merging.load_quietly(spec)
    fast = {text: merging.transform(loaded, one, options) for text, one in by_r(rs).items()}
    rows = measure(loaded, subjects(loaded, fast), settings)
    around = results.environment(loaded, settings) | {"flags": told(model, merge)}
    if file.results_file:
        results.write(file.results_file, kind, rows, around)
    if as_json:
        console.print_json(results.document(rows, around))
        return
    tables.print_results(rows, console.out())
    print(
        f"{results.told(around)}, batch {batch_size}; medians of {settings.rounds} rounds in turn"
    )
    if file.results_file:
        print(f"saved: {file.results_file}")
