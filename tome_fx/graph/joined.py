"""The axis that a ``cat`` makes."""

from __future__ import annotations

from tome_fx.graph.axes import Axis, Concat, extent


def concat(parts: list[Axis]) -> Axis:
    """The axis that a ``cat`` of ``parts`` makes; nested concatenations are flattened."""
    row: list[Axis] = []
    for part in parts:
        inner = part[0] if len(part) == 1 else None
        row.extend(inner.parts if isinstance(inner, Concat) else [part])
    row = [part for part in row if extent(part) > 0]
    if len(row) == 1:
        return row[0]
    return (Concat(tuple(row)),)
