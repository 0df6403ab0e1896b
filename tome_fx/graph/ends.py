"""What stands around the stream of a token axis."""

from __future__ import annotations

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    count,
    extent,
    has_stream,
    pieces,
    streams_of_axis,
)


def ends_of(axis: Axis, stream: int | None = None) -> tuple[int, int]:
    """How many tokens of the token factor stand before and behind its stream, after merging."""
    factor = next(f for f in axis if has_stream((f,)))
    front, back, passed = 0, 0, False
    for part in pieces(factor):
        here = any(stream is None or s.id == stream for s in streams_of_axis(part))
        if here and not passed:
            passed = True
        elif passed:
            back += count(part)
        else:
            front += count(part)
    return front, back


def forget_streams(type_: TensorType) -> TensorType:
    """``type_`` with plain axes for its tokens: rows of a table, merged where used."""

    def plain(axis: Axis) -> Axis:
        if not has_stream(axis):
            return axis
        return (Atom(extent(axis), Origin("constant", "table")),)

    return TensorType(tuple(plain(axis) for axis in type_.axes))
