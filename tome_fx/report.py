"""What was found and done, as data; printed as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tome_fx.costs.estimate import Estimate


@dataclass(frozen=True)
class Block:
    """One attention block: where it is, its tokens (the protected ones included), its MACs."""

    index: int
    attention: str
    mlp: str
    kind: str
    tokens_in: int
    tokens_out: int
    removed: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class Protected:
    """Tokens that never merge: how many, at which end, and why."""

    count: int
    where: str
    reason: str


@dataclass(frozen=True)
class Unmerge:
    """A place where merged tokens took their old number again, and what it costs.

    ``op`` is the op that wanted it; ``kind`` is ``unmerge``, or ``merge`` where values that an op
    told apart, or tokens from before a merge, were averaged.
    """

    op: str
    module: str
    source: str
    reason: str
    bytes_per_image: int
    kind: str = "unmerge"


@dataclass(frozen=True)
class NearMiss:
    """Something that looks like a place to merge and is none, with the reason."""

    what: str
    module: str
    source: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The account of one transform; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    MACs are multiply-accumulates per image. ``macs_matching`` is the part of ``macs_after`` that
    the matching itself costs. ``skipped`` says why merging was not applied, if it was not.
    ``every`` and ``align`` are what was asked for, ``aligned`` the multiple that ``align`` stands
    for here; ``estimate`` is there if ``batch`` was given, also where it speaks against merging.
    """

    model: str
    capture: str
    r: Any
    schedule: tuple[int, ...]
    blocks: tuple[Block, ...]
    protected: tuple[Protected, ...]
    macs_before: int
    macs_after: int
    macs_matching: int
    unmerges: tuple[Unmerge, ...]
    near_misses: tuple[NearMiss, ...]
    notes: tuple[str, ...]
    skipped: str = ""
    every: int = 1
    align: int | str = 1
    aligned: int = 1
    estimate: Estimate | None = None

    @property
    def flop_ratio(self) -> float:
        """How many times fewer MACs: the limit of the speed-up."""
        return self.macs_before / self.macs_after if self.macs_after else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {**asdict(self), "flop_ratio": self.flop_ratio}

    def __str__(self) -> str:
        """Lines of at most about 100 columns."""
        parts = [_head(self), _blocks(self), *_lists(self)]
        return "\n\n".join(part for part in parts if part)


def giga(macs: int) -> str:
    """``17.56 G``, ``731.0 M``, ``2.1 k``: MACs at a readable scale."""
    if macs >= 1e9:
        return f"{macs / 1e9:.2f} G"
    return f"{macs / 1e6:.1f} M" if macs >= 1e5 else f"{macs / 1e3:.1f} k"


def span(seconds: float) -> str:
    """``12.3 ms``, ``840 us``: a time at a readable scale."""
    if seconds >= 1.0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def planning(report: Report) -> str:
    """How merges were grouped and tokens aligned, where anything was asked of that."""
    every = f", every={report.every}" if report.every > 1 else ""
    if report.align == 1:
        return every
    stands = f" (here {report.aligned})" if report.align == "auto" else ""
    return f"{every}, align={report.align!r}{stands}"


def estimated(told: Estimate) -> str:
    """What the estimate says of merging, in a line."""
    share = told.seconds_merging / told.seconds_after if told.seconds_after else 0.0
    return (
        f"for batch {told.batch} on {told.hardware}: {span(told.seconds_before)} -> "
        f"{span(told.seconds_after)} ({told.speedup:.2f}x, merging costs {share:.0%} of it)"
    )


def _head(report: Report) -> str:
    lines = [
        f"{report.model}, captured by {report.capture}, r={report.r!r}{planning(report)}",
        f"MACs per image {giga(report.macs_before)} -> {giga(report.macs_after)} "
        f"(ratio {report.flop_ratio:.2f}, matching {giga(report.macs_matching)} of it)",
    ]
    if report.skipped:
        lines.append(f"not applied: {report.skipped}")
    elif report.estimate:
        lines.append(f"estimated {estimated(report.estimate)}")
    for item in report.protected:
        lines.append(f"protected: {item.count} at the {item.where}, {item.reason}")
    return "\n".join(lines)


def _layers(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks that are one layer in one line: the images or windows of a row, each a stream."""
    layers: list[list[Block]] = []
    for block in blocks:
        last = layers[-1][-1] if layers else None
        if (
            last is not None
            and not block.macs_before  # counted with the first; one used twice has its own
            and (block.attention, block.mlp) == (last.attention, last.mlp)
            and block.tokens_in == last.tokens_out
        ):
            layers[-1].append(block)
        else:
            layers.append([block])
    return layers


def _blocks(report: Report) -> str:
    rows = [("block", "attention", "MLP", "kind", "tokens", "removed", "MACs before", "after")]
    for layer in _layers(report.blocks):
        first, last, removed = layer[0], layer[-1], sum(block.removed for block in layer)
        several = len(layer) > 1
        rows.append(
            (
                f"{first.index}-{last.index}" if several else str(first.index),
                first.attention or "-",
                first.mlp or "-",
                first.kind,
                f"{first.tokens_in} -> {last.tokens_out}",
                f"{removed} in {len(layer)} rows" if several else str(removed),
                giga(sum(block.macs_before for block in layer)),
                giga(sum(block.macs_after for block in layer)),
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
        parts.append("unmerged:\n" + "\n".join(_counted(lines)))
    if report.near_misses:
        lines = [
            f"  {m.what} at {m.module or 'the top level'} ({m.source or 'no source'}): {m.reason}"
            for m in report.near_misses
        ]
        parts.append("not merged:\n" + "\n".join(_counted(lines)))
    if report.notes:
        parts.append("notes:\n" + "\n".join(f"  {note}" for note in report.notes))
    return parts


def _counted(lines: Sequence[str]) -> list[str]:
    """Each line once, and how often."""
    times = Counter(lines)
    return [line if count == 1 else f"{line} ({count} times)" for line, count in times.items()]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
