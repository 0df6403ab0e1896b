"""`tome-fx bench --suite`: each case that has no row yet is measured, kept, and drawn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tome_fx.cli import console, results, tables
from tome_fx.cli.failure import CliError
from tome_fx.cli.memory import method
from tome_fx.cli.models import DTYPES, open_device
from tome_fx.cli.processes import Processes
from tome_fx.cli.suites import plots
from tome_fx.cli.suites.cases import KEYS, Case, Suite, chosen
from tome_fx.cli.suites.figures import Setup, figures
from tome_fx.cli.suites.rows import Key, Record, as_text, load, save
from tome_fx.cli.suites.steps import summed
from tome_fx.profiling.steps import ADDED

CLONE = Path("docs", "benchmarks")
OUTPUTS = Path("outputs")
_SIZES = ("tokens", "tokens_out", "original_gmacs", "transformed_gmacs", "flop_ratio")
# The columns between the keys and the machine's, by the kind of suite.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "speed": (
        *_SIZES,
        *(f"{side}_{name}" for side in ("original", "transformed")
          for name in ("ms", "iqr_ms", "samples_per_sec", "peak_mib", "compile_s")),
        "ratio", "ratio_q1", "ratio_q3", "share", "rounds", "warmup",
    ),
    "memory": (*_SIZES, "original_peak_mib", "transformed_peak_mib", "memory_ratio"),
    "transform": ("nodes_before", "nodes_after", "transform_s", "capture_s", "locate_s",
                  "rewrite_s", "rounds"),
    "steps": ("program", "layer", "step", "nodes", "ms", "macs", "moved", "bound_ms", "rounds",
              "warmup", "peak_gmacs_per_s", "peak_gb_per_s"),
}  # fmt: skip


def default_folder() -> Path:
    """Return docs/benchmarks in a clone of the project, elsewhere outputs."""
    return CLONE if CLONE.is_dir() and Path("passes", "lift.py").is_file() else OUTPUTS


def run(
    names: str, setup: Setup, out: Path | None, fresh: bool, model: str | None, drawn: bool
) -> list[Path]:
    """Measure suites and return the files written.

    Args:
        names: with commas between them, or `all`.
        out: the folder of the files; `default_folder` if None.
        fresh: measure again what has a row already.
        model: only the cases of this model.
        drawn: also make the plots.

    Raises CliError for an unknown suite, a file of another machine, a missing plotting library.
    """
    device = open_device(setup.device)
    suites = chosen(names, device.type)
    if model and not any(case.model == model for suite in suites for case in suite.cases):
        known = sorted({case.model for suite in suites for case in suite.cases})
        raise CliError(f"--suite {names}: no case of {model}; it has {', '.join(known)}")
    if setup.precision not in (*DTYPES, "amp"):
        raise CliError(f"--precision {setup.precision}: not one of {', '.join(DTYPES)}, amp")
    if setup.amp is not None and any(suite.kind == "steps" for suite in suites):
        raise CliError("--amp: the suite profile times the steps of a program in one precision")
    if drawn:
        plots.check_installed()
    folder = out or default_folder()
    results.make_folder(folder, "--out")
    around = results.machine_of(device, DTYPES.get(setup.precision, DTYPES["float32"]), setup.amp)
    around |= {"memory": method(device)}
    written = []
    for suite in suites:
        path = folder / f"{suite.name}-{device.type}.csv"
        rows = _measured(suite, path, setup, around, fresh, model)
        written.append(path)
        if drawn:
            written.append(plots.draw(suite, rows, path.with_suffix(".svg")))
        _show(suite, rows)
    return written


def _measured(
    suite: Suite,
    path: Path,
    setup: Setup,
    around: Mapping[str, Any],
    fresh: bool,
    model: str | None,
) -> list[Record]:
    """Measure what has no row yet; the file is written after each case."""
    columns = ("suite", *KEYS, *COLUMNS[suite.kind], *around)
    wanted = [case for case in suite.cases if model in (None, case.model)]
    there = load(path, columns, around) if not fresh else {}
    for index, case in enumerate(wanted, 1):
        if case.key in there:
            continue
        _say(f"{suite.name} {index}/{len(wanted)}: {case}")
        keys = {name: getattr(case, name) for name in KEYS}
        there[case.key] = [
            as_text({name: found[name] for name in columns})
            for one in figures(suite.kind, case, setup)
            for found in [{"suite": suite.name, **keys, **one, **around}]
        ]
        save(path, _in_order(suite.cases, there))
    return _in_order(suite.cases, there)


def _in_order(cases: Sequence[Case], there: Mapping[Key, Sequence[Record]]) -> list[Record]:
    """Rows in the order of the cases; those of cases that are no more come last."""
    keys = [case.key for case in cases]
    ordered = (*keys, *(key for key in there if key not in keys))
    return [row for key in ordered for row in there.get(key, ())]


def _say(text: str) -> None:
    if Processes.from_environment().first:
        print(text, file=sys.stderr, flush=True)


_SHOWN = {
    "speed": ("model", "r", "batch_size", "tokens", "mode", "original_ms", "transformed_ms",
              "ratio", "flop_ratio", "share"),
    "memory": ("model", "r", "batch_size", "grad", "mode", "original_peak_mib",
               "transformed_peak_mib", "memory_ratio"),
    "transform": ("model", "depth", "nodes_before", "nodes_after", "transform_s", "capture_s",
                  "locate_s", "rewrite_s"),
    "steps": ("model", "r", "batch_size", "original_ms", "merged_ms", "projections", "attention",
              "mlp", *ADDED, "added"),
}  # fmt: skip


def _show(suite: Suite, rows: Sequence[Record]) -> None:
    names = _SHOWN[suite.kind]
    if suite.kind == "steps":
        rows = summed(rows)
    lines = [names, *([_short(row[name]) for name in names] for row in rows)]
    print(f"{suite.title} ({suite.name})")
    tables.print_lines(lines, console.out(), left=1)


def _short(text: str) -> str:
    return f"{float(text):.4g}" if "." in text and text.replace(".", "", 1).isdigit() else text
