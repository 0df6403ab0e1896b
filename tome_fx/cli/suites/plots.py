"""A plot for each suite, as an SVG file that is the same for the same rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tome_fx.cli.failure import CliError
from tome_fx.cli.suites.cases import Suite
from tome_fx.cli.suites.rows import Record, by_case
from tome_fx.cli.suites.steps import MERGED, ORIGINAL, milliseconds
from tome_fx.profiling.steps import ADDED, STEPS

BLUE, ORANGE, GREY = "#3465a4", "#c4570b", "#777777"
# For what both programs have, and for what merging adds.
_CALM = ("#1f3d66", "#3465a4", "#7fa3d1", "#b9cde6", "#8f8f8f", "#cfcfcf")
_WARM = ("#8c3a00", "#c4570b", "#e8974f", "#f3c193", "#fbe3cd")
# Texts stay texts, and names inside the file do not depend on the run.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tome_fx",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
}


def check_installed() -> None:
    """Raise CliError where there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CliError('plots need matplotlib: pip install "tome_fx[plot]", or --no-plots')


def draw(suite: Suite, rows: Sequence[Record], path: Path) -> Path:
    """Draw the rows of a suite to ``path`` and return it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout=ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96)))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _DRAWING[suite.name](axes, rows)
        axes.set_title(suite.title, loc="left", fontsize=10)
        figure.text(1.0, 0.0, _machine(rows), ha="right", va="bottom", fontsize=6, color=GREY)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return path


def _machine(rows: Sequence[Record]) -> str:
    row = rows[0]
    where = f"{row['device_name']}, threads: {row['threads']}"
    return f"{where}, torch {row['torch']}, {row['precision']}"


def _values(rows: Sequence[Record], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _label(row: Record) -> str:
    model = row["model"].partition("_patch")[0].replace("_", " ")
    return f"{model}\nr={row['r']}, batch {row['batch_size']}"


def _shares(axes: Any, rows: Sequence[Record]) -> None:
    places = range(len(rows))
    axes.bar(places, _values(rows, "share"), color=BLUE, width=0.6)
    axes.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
    axes.set_xticks(places, [_label(row) for row in rows], fontsize=6)
    axes.set_ylabel("speed-up / FLOP ratio")
    axes.set_ylim(0, max(1.1, *_values(rows, "share")))


def _throughput(axes: Any, rows: Sequence[Record]) -> None:
    rs = _values(rows, "r")
    axes.plot(rs, _values(rows, "transformed_samples_per_sec"), "o-", color=BLUE, label="merged")
    before = _values(rows, "original_samples_per_sec")
    limit = [one * ratio for one, ratio in zip(before, _values(rows, "flop_ratio"), strict=True)]
    axes.plot(rs, limit, "--", color=GREY, label="FLOP limit")
    axes.plot(rs, before, "o-", color=ORANGE, label="original")
    axes.set_xlabel("tokens merged per layer (r)")
    axes.set_ylabel("images / s")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _against(column: str, name: str) -> Callable[[Any, Sequence[Record]], None]:
    def drawn(axes: Any, rows: Sequence[Record]) -> None:
        modes = dict.fromkeys(row["mode"] for row in rows)
        for mode, marker in zip(modes, "osd", strict=False):
            own = [row for row in rows if row["mode"] == mode]
            label = f"speed-up, {mode}" if len(modes) > 1 else "speed-up"
            axes.plot(_values(own, column), _values(own, "ratio"), f"{marker}-", label=label)
        own = [row for row in rows if row["mode"] == next(iter(modes))]
        axes.plot(_values(own, column), _values(own, "flop_ratio"), "--", color=GREY,
                  label="FLOP limit")  # fmt: skip
        axes.set_xscale("log", base=2)
        places = sorted(set(_values(rows, column)))
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("times faster")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)

    return drawn


def _peaks(axes: Any, rows: Sequence[Record]) -> None:
    for side, (name, colour) in enumerate((("original", ORANGE), ("transformed", BLUE))):
        places = [index + 0.36 * side for index in range(len(rows))]
        peaks = [float(row[f"{name}_peak_mib"] or "nan") for row in rows]
        axes.bar(places, peaks, width=0.34, color=colour, label=name)
    labels = [f"{_label(row)}\n{row['grad']}\n{row['mode']}" for row in rows]
    axes.set_xticks([index + 0.18 for index in range(len(rows))], labels, fontsize=5)
    axes.set_ylabel("MiB")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _transform(axes: Any, rows: Sequence[Record]) -> None:
    depths = _values(rows, "depth")
    for name in ("transform_s", "capture_s", "locate_s", "rewrite_s"):
        axes.plot(depths, _values(rows, name), "o-", label=name.removesuffix("_s"))
    axes.set_xticks(depths)
    axes.set_xlabel("layers")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _steps(axes: Any, rows: Sequence[Record]) -> None:
    """Two columns a case, original and merged, of steps in STEPS' order, what is added on top."""
    cases = list(by_case(rows).values())
    order = [step for step in STEPS if step not in ADDED] + list(ADDED)
    times = [[milliseconds(case, program) for program in (ORIGINAL, MERGED)] for case in cases]
    places = [index + side for index in range(len(cases)) for side in (-0.2, 0.2)]
    below = [0.0] * len(places)
    for step, colour in zip(order, (*_CALM, *_WARM), strict=True):
        heights = [ms[step] / sum(both[0].values()) for both in times for ms in both]
        if any(heights):
            axes.bar(places, heights, bottom=below, width=0.36, color=colour, label=step)
        below = [one + height for one, height in zip(below, heights, strict=True)]
    labels = [_label(case[0]).replace(", ", "\n") for case in cases]
    axes.set_xticks(range(len(cases)), labels, fontsize=5)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5),
                reverse=True)  # fmt: skip


_DRAWING: dict[str, Callable[[Any, Sequence[Record]], None]] = {
    "targets": _shares,
    "families": _shares,
    "r": _throughput,
    "batch": _against("batch_size", "images a batch"),
    "tokens": _against("tokens", "tokens"),
    "training": _shares,
    "memory": _peaks,
    "depth": _transform,
    "profile": _steps,
}
