"""A report as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from tome_fx.report import Report


def render(report: Report) -> str:
    """The report as lines of at most about 100 columns."""
    parts = [_head(report), _blocks(report), *_lists(report)]
    return "\n\n".join(part for part in parts if part)


def giga(macs: int) -> str:
    """``17.56 G``, ``731.0 M``, ``2.1 k``: MACs at a readable scale."""
    if macs >= 1e9:
        return f"{macs / 1e9:.2f} G"
    return f"{macs / 1e6:.1f} M" if macs >= 1e5 else f"{macs / 1e3:.1f} k"


def _head(report: Report) -> str:
    lines = [
        f"{report.model}, captured by {report.capture}, r={report.r!r}",
        f"MACs per image {giga(report.macs_before)} -> {giga(report.macs_after)} "
        f"(ratio {report.flop_ratio:.2f}, matching {giga(report.macs_matching)} of it)",
    ]
    for item in report.protected:
        lines.append(f"protected: {item.count} at the {item.where}, {item.reason}")
    return "\n".join(lines)


def _blocks(report: Report) -> str:
    rows = [("block", "attention", "MLP", "kind", "tokens", "removed", "MACs before", "after")]
    for block in report.blocks:
        rows.append(
            (
                str(block.index),
                block.attention or "-",
                block.mlp or "-",
                block.kind,
                f"{block.tokens_in} -> {block.tokens_out}",
                str(block.removed),
                giga(block.macs_before),
                giga(block.macs_after),
            )
        )
    return _columns(rows) if report.blocks else "no attention block"


def _lists(report: Report) -> list[str]:
    parts = []
    if report.unmerges:
        lines = [
            f"  {u.kind} for {u.op} at {u.module or 'the top level'} ({u.source or 'no source'}): "
            f"{u.reason}; {u.bytes_per_image / 1024:.0f} KiB per image"
            for u in report.unmerges
        ]
        parts.append("unmerged:\n" + "\n".join(lines))
    if report.near_misses:
        lines = [
            f"  {m.what} at {m.module or 'the top level'} ({m.source or 'no source'}): {m.reason}"
            for m in report.near_misses
        ]
        parts.append("not merged:\n" + "\n".join(lines))
    if report.notes:
        parts.append("notes:\n" + "\n".join(f"  {note}" for note in report.notes))
    return parts


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
