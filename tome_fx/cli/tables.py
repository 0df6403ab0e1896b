"""Reports and results as tables on a terminal, and as plain text elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tome_fx.cli.measure import ORIGINAL, Row
from tome_fx.cli.scores import BASE, Score
from tome_fx.cli.wording import as_flags
from tome_fx.report import Report, estimated, planning

GIGA = 1e9


def print_report(report: Report, console: Console) -> None:
    """Print a report: a table on a terminal, its own plain text elsewhere."""
    if not console.is_terminal:
        if report.skipped:
            report = replace(report, skipped=as_flags(report.skipped))
        _write(str(report), console)
        return
    console.print(blocks_table(report))
    for line in summary_lines(report):
        console.print(line)


def blocks_table(report: Report) -> Table:
    """Return one line for each block: where it merges, how many tokens, what it costs."""
    table = _table(f"{report.model} ({report.capture})")
    for name in ("block", "attention", "mlp", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("tokens", "removed", "GMACs", "merged"):
        table.add_column(name, justify="right")
    for block in report.blocks:
        table.add_row(
            str(block.index),
            block.attention,
            block.mlp or "-",
            block.kind,
            f"{block.tokens_in} → {block.tokens_out}",
            str(block.removed),
            f"{block.macs_before / GIGA:.3f}",
            f"{block.macs_after / GIGA:.3f}",
        )
    return table


def summary_lines(report: Report) -> Iterable[RenderableType]:
    """Yield totals, protected tokens, unmerges, near misses and notes, a line each."""
    before, after = report.macs_before / GIGA, report.macs_after / GIGA
    matching = report.macs_matching / GIGA
    yield _line(
        "GMACs per image",
        f"{before:.2f} → {after:.2f} (ratio {report.flop_ratio:.2f}); matching {matching:.3f}",
    )
    if asked := planning(report).removeprefix(", "):
        yield _line("planned with", asked)
    if report.skipped:
        yield _line("not applied", as_flags(report.skipped))
    elif report.estimate:
        yield _line("estimated", estimated(report.estimate))
    for item in report.protected:
        yield _line("protected", f"{item.count} at the {item.where}, {item.reason}")
    for unmerge in report.unmerges:
        cost = f"{unmerge.bytes_per_image / 1024:.0f} KiB per image"
        yield _line(unmerge.kind, f"{unmerge.op} in {_at(unmerge)}: {unmerge.reason} ({cost})")
    for miss in report.near_misses:
        yield _line("not merged", f"{miss.what} in {_at(miss)}: {miss.reason}")
    for note in report.notes:
        yield _line("note", note)


def _at(item: object) -> str:
    module, source = getattr(item, "module", ""), getattr(item, "source", "")
    return ", ".join(part for part in (module, source) if part) or "the graph"


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name}: ", "bold"), text)


COLUMNS = (
    "model", "mode", "ms", "IQR", "im/s", "speed-up", "GMACs", "FLOP ratio", "reached", "memory"
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return one result as text, in the order of COLUMNS."""
    original = not row.r
    peak = "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.1f} MiB"
    return (
        ORIGINAL if original else f"r={row.r}",
        row.mode,
        f"{row.median_ms:.1f}",
        f"{row.iqr_ms:.1f}",
        f"{row.samples_per_sec:.1f}",
        f"{row.speedup:.2f}x",
        f"{row.gmacs:.2f}",
        f"{row.flop_ratio:.2f}",
        "-" if original else f"{row.flop_ratio_share:.0%}",
        peak,
    )


def print_results(rows: Sequence[Row], console: Console) -> None:
    """Print the results as a table, aligned also where there is no terminal."""
    # Memory comes last; unmeasured, it is left out.
    count = len(COLUMNS) - all(row.peak_memory_mib is None for row in rows)
    lines = [line[:count] for line in (COLUMNS, *map(cells, rows))]
    modes = [row.mode for row in rows]
    sections = [i for i, (a, b) in enumerate(itertools.pairwise(modes), 1) if a != b]
    print_lines(lines, console, sections)


def print_lines(
    lines: Sequence[Sequence[str]],
    console: Console,
    sections: Sequence[int] = (),
    left: int = 2,
) -> None:
    """Print a heading and lines of cells, of which the first `left` are aligned to the left.

    New sections begin at the lines `sections`, counted from 0 after the heading.
    """
    table = _table()
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    for number, line in enumerate(lines[1:]):
        if number in sections:
            table.add_section()
        table.add_row(*line, style="dim" if line[0] == ORIGINAL else None)
    if console.is_terminal and _width(table, console) <= console.width:
        console.print(table)
    else:
        _write(plain(lines, left), console)


def print_scores(scores: Sequence[Score], console: Console) -> None:
    """Print a line for each r; the columns of accuracy only where there are labels."""
    names = ["model", "top-1", "top-5", "agreement", "distance", "im/s", "FLOP ratio"]
    lines = [names] + [_score_cells(score) for score in scores]
    if scores[0].top1 is None:
        lines = [[line[0], *line[3:]] for line in lines]
    print_lines(lines, console, left=1)


def _score_cells(score: Score) -> list[str]:
    return [
        ORIGINAL if score.r == BASE else f"r={score.r}",
        *("-" if share is None else f"{share:.2f}" for share in (score.top1, score.top5)),
        f"{score.agreement:.2%}",
        f"{score.logit_distance:.4f}",
        f"{score.samples_per_sec:.1f}",
        f"{score.ratio:.2f}",
    ]


def _write(text: str, console: Console) -> None:
    """Write lines as they are: rich would cut or wrap them at the width of the console."""
    console.file.write(text.rstrip("\n") + "\n")


def _width(table: Table, console: Console) -> int:
    """Return how wide the table would like to be; less, and figures would be cut off."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _table(title: str | None = None) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def plain(lines: Sequence[Sequence[str]], left: int = 2) -> str:
    """Return lines of cells as aligned text; the first `left` columns to the left."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    aligned = [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)
