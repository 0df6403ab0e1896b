"""What stands around the stream of a token axis."""

from __future__ import annotations

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    axis_of,
    count,
    extent,
    has_stream,
    pieces,
    streams_of_axis,
)
from tome_fx.graph.frames import is_beside
from tome_fx.graph.grids import fused


def ends_of(axis: Axis, which: int = 0) -> tuple[int, int]:
    """How many tokens stand before and behind the ``which``-th stream of an axis, after merging."""
    for factor in axis:
        parts = pieces(factor)
        own = [i for i, part in enumerate(parts) if has_stream(part)]
        if which < len(own):
            at = own[which]
            return sum(map(count, parts[:at])), sum(map(count, parts[at + 1 :]))
        which -= len(own)
    raise ValueError(f"an axis without that many streams: {axis}")


def fixed_before(axis: Axis, which: int = 0) -> int:
    """How many tokens that never merge stand right before the ``which``-th stream of an axis.

    Behind another stream the count begins anew: of several images in one row, each is matched as
    it would be alone.
    """
    for factor in axis:
        before = 0
        for part in pieces(factor):
            if has_stream(part) and which == 0:
                return before
            before = 0 if has_stream(part) else before + count(part)
            which -= has_stream(part)
    raise ValueError(f"an axis without that many streams: {axis}")


def place_of(axis: Axis, stream: int) -> int:
    """Which of the streams of an axis is the first with this id."""
    return [s.id for s in streams_of_axis(axis)].index(stream)


def tokens_of(type_: TensorType, stream: int) -> int:
    """How many tokens, protected ones included, the axis of a stream holds.

    Tokens of several frames on one axis, merged together, are counted once.
    """
    axis = axis_of(fused(type_), stream)
    own = next(s for s in streams_of_axis(axis) if s.id == stream)
    return own.count + sum(ends_of(axis, place_of(axis, stream)))


def channels_of(type_: TensorType) -> int:
    """The axis of a value of tokens that holds the features of each; the last of one feature.

    Frames or windows may stand behind it: ``[B, C, W, N]``.
    """
    inner = [i for i, axis in enumerate(type_.axes) if extent(axis) > 1 and not has_stream(axis)]
    named = [i for i in inner if not any(map(is_beside, type_.axes[i]))]
    return (named or inner or [type_.rank - 1])[-1]


def forget_streams(type_: TensorType) -> TensorType:
    """``type_`` with plain axes for its tokens: rows of a table, merged where used."""

    def plain(axis: Axis) -> Axis:
        if not has_stream(axis):
            return axis
        return (Atom(extent(axis), Origin("constant", "table")),)

    return TensorType(tuple(plain(axis) for axis in type_.axes))
