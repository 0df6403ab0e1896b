"""Group sizes where images or tokens share an axis with something else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    Batch,
    Concat,
    Factor,
    TensorType,
    batch_axis,
    count,
    factor_count,
    has_stream,
    pieces,
    streams_of_axis,
    token_factor,
)
from tome_fx.lifting.levels import Levels

aten = torch.ops.aten


class Sizes(Protocol):
    """What knows the sizes at each level and emits ops on them."""

    levels: Levels

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node: ...


def heads_around(axis: Axis) -> tuple[int, int]:
    """How many positions stand outside and inside of the images on their axis."""
    at = next(i for i, factor in enumerate(axis) if isinstance(factor, Batch))
    return count(axis[:at]), count(axis[at + 1 :])


def folded_size(sizes: Sizes, type_: TensorType, place: int, which: int | None) -> Node:
    """Sizes for a token axis that is a product, or that holds the images too.

    They are made with each factor on an axis of its own, and folded as the value is.
    """
    batch = batch_axis(type_)
    flat: list[Factor | None] = []
    for i, axis in enumerate(type_.axes):
        flat.extend(axis if i in (batch, place) else [None])
    images = next(i for i, f in enumerate(flat) if isinstance(f, Batch))
    tokens, own = _token_place(flat, which)
    factor = flat[tokens]
    assert factor is not None, "a place that holds a stream is a factor"
    row = sizes.emit(ops.along, size_parts(sizes, factor, own), len(flat), images, tokens)
    wide = [
        -1 if f is None or i in (images, tokens) else factor_count(f) for i, f in enumerate(flat)
    ]
    shape = [count(axis) if i == place else 1 for i, axis in enumerate(type_.axes)]
    shape[batch or 0] = -1
    return sizes.emit(aten.reshape.default, sizes.emit(aten.expand.default, row, wide), shape)


def is_folded_piece(axis: Axis, which: int) -> bool:
    """Is the ``which``-th stream of a concatenation one factor of several in its piece?"""
    for part in pieces(axis[0]) if len(axis) == 1 and isinstance(axis[0], Concat) else ():
        here = len(list(streams_of_axis(part)))
        if which < here:
            return len(part) > 1
        which -= here
    return False


def size_parts(sizes: Sizes, factor: Factor, which: int | None = None) -> list[Node | int]:
    """The sizes of each stream of a token factor, and the counts of what stands around them."""
    row = sizes.levels.rows.of((factor,)) if which is None else None
    if row is not None:
        return [row.size]
    parts: list[Node | int] = []
    order = itertools.count()
    for part in pieces(factor):
        own = [s for s in streams_of_axis(part) if which in (next(order), None)]
        size = sizes.levels.size(own[0].id, own[0].level) if own else None
        parts.append(count(part) if size is None else _repeated(sizes, size, part))
    return parts


def size_row(sizes: Sizes, axis: Axis) -> Node | None:
    """The sizes of all tokens of a row, ``[B, N]``; None where all are 1."""
    row = sizes.levels.rows.of(axis)
    if row is not None:
        return row.size
    parts = size_parts(sizes, axis[0])
    known = any(isinstance(part, Node) for part in parts)
    return sizes.emit(ops.along, parts, 2, 0, 1) if known else None


def _repeated(sizes: Sizes, size: Node, part: Axis) -> Node:
    """Sizes ``[B, n]`` for a piece that holds the tokens as one factor of several.

    Or in a row with tokens of each frame that never merge.
    """
    if len(part) == 1:
        return size
    inner = token_factor(part)
    if isinstance(inner, Concat):
        size = sizes.emit(ops.along, size_parts(sizes, inner), 2, 0, 1)
    row = [factor_count(f) if has_stream((f,)) else 1 for f in part]
    wide = sizes.emit(aten.reshape.default, size, [-1, *row])
    wide = sizes.emit(aten.expand.default, wide, [-1, *map(factor_count, part)])
    return sizes.emit(aten.reshape.default, wide, [-1, count(part)])


def _token_place(flat: list[Factor | None], which: int | None) -> tuple[int, int | None]:
    """Where the ``which``-th stream is, and which one it is there; the first factor for None."""
    seen = 0
    for i, factor in enumerate(flat):
        here = 0 if factor is None else len(list(streams_of_axis((factor,))))
        if factor is not None and has_stream((factor,)):
            if which is None:
                return i, None
            if which < seen + here:
                return i, which - seen
        seen += here
    raise AssertionError("the axis holds the stream")
