"""Ops that take pieces of an axis: exact on the borders of a concatenation."""

from __future__ import annotations

import itertools
import sys
from typing import Any

from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Origin,
    TensorType,
    count,
    extent,
    has_batch,
    has_stream,
    is_merged,
    is_merged_axis,
)
from tome_fx.graph.cuts import takes_all
from tome_fx.graph.joined import concat
from tome_fx.graph.regroup import axis_kind
from tome_fx.graph.single import is_plain_row, stretch
from tome_fx.rules.base import Context, Lifted, Refusal, one

_EMPTY: Axis = (Atom(0, Origin("literal", "empty")),)


def slice_(context: Context) -> Lifted | Refusal:
    """``slice`` and ``narrow`` with a step of 1 between borders; else a new plain axis.

    ``x[i::n]`` of images with ``n`` frames each is frame ``i`` of each.
    """
    call, type_ = context.call, context.types["self"]
    dim = context.dim(call["dim"], type_.rank)
    every = _one_of_each(context, type_.axes[dim])
    if every is not None and not is_merged(type_):
        return one(TensorType((*type_.axes[:dim], every, *type_.axes[dim + 1 :])))
    axis, whole = type_.axes[dim], extent(type_.axes[dim])
    start, end = (0, whole) if takes_all(call.node) else span(context, whole)
    if start is None or end is None or call.get("step", 1) != 1:
        return _other(context, type_, dim)
    cut = cut_axis(axis, start, end)
    row = is_plain_row(axis) and axis_kind(axis) != "channel"
    if cut is None and row and call.node in context.tiles:
        cut = stretch(axis, start, end), start
    if cut is None:
        return _other(context, type_, dim)
    result, first = cut
    axes = (*type_.axes[:dim], result, *type_.axes[dim + 1 :])
    if call.name == "aten.narrow":
        literal = {"start": first, "length": count(result)}
    else:
        literal = {"start": first, "end": first + count(result)}
    return one(TensorType(axes), arguments=literal if is_merged_axis(axis) else {})


def _one_of_each(context: Context, axis: Axis) -> Axis | None:
    """What is left of ``(rest, n)`` by ``[i::n]``."""
    step, start, end = (context.call.get(name) for name in ("step", "start", "end"))
    inner = extent(axis[-1:]) if len(axis) > 1 and isinstance(axis[-1], Atom) else 1
    one_each = 1 < inner == step and (start or 0) in range(inner) and end in (None, sys.maxsize)
    return axis[:-1] if one_each else None


def span(context: Context, whole: int) -> tuple[int | None, int | None]:
    start, end = context.call.get("start"), context.call.get("end")
    if context.call.name == "aten.narrow":
        length = context.call["length"]
        if not isinstance(start, int) or not isinstance(length, int):
            return None, None
        return start % whole if whole else 0, start % whole + length if whole else 0
    start, end = 0 if start is None else start, whole if end is None else end
    # x[:, : y.shape[1]], x[: x.shape[0]]: a size that is known to be one axis.
    start, end = (_size(context, value) for value in (start, end))
    if not isinstance(start, int) or not isinstance(end, int):
        return None, None
    start, end = (v + whole if v < 0 else v for v in (start, end))
    return min(max(start, 0), whole), min(max(end, 0), whole)


def _size(context: Context, value: Any) -> Any:
    known = context.sizes.get(value) if isinstance(value, Node) else None
    return value if known is None else extent(known)


def cut_axis(axis: Axis, start: int, end: int) -> tuple[Axis, int] | None:
    """The piece of ``axis`` from ``start`` to ``end``, and where it begins after merging.

    None where a border of the cut runs through a piece that cannot be split (a stream, the batch)
    or through an unnamed plain axis.
    """
    if (start, end) == (0, extent(axis)):
        return axis, 0
    if start >= end:
        return _EMPTY, 0
    if len(axis) > 1 and isinstance(axis[0], Atom):
        return _cut_product(axis, start, end)
    if len(axis) != 1 or not isinstance(axis[0], Concat):
        return None
    taken: list[Axis] = []
    first, at, at_count = None, 0, 0
    for part in axis[0].parts:
        low, high = max(start, at), min(end, at + extent(part))
        if low < high:
            whole = (low, high) == (at, at + extent(part))
            if not whole and (has_stream(part) or has_batch(part)):
                return None
            first = at_count + low - at if first is None else first
            taken.append(part if whole else _inner(part, low - at, high - at))
        at, at_count = at + extent(part), at_count + count(part)
    return (concat(taken), first) if taken and first is not None else None


def _cut_product(axis: Axis, start: int, end: int) -> tuple[Axis, int] | None:
    """Whole rows of ``(rows, rest)``, as a ``cat`` or a ``repeat`` makes them."""
    rest = axis[1:]
    if start % extent(rest) or end % extent(rest) or (has_batch(rest) and is_merged_axis(rest)):
        return None
    rows = range(start // extent(rest), end // extent(rest))
    name = f"{axis[0].origin.node}" if isinstance(axis[0], Atom) else ""
    outer = Atom(len(rows), Origin(axis_kind(axis[:1]), name, (rows.start, rows.stop)))
    return ((outer, *rest) if len(rows) > 1 else rest), rows.start * count(rest)


def _inner(part: Axis, low: int, high: int) -> Axis:
    """A stretch of a plain piece; it keeps the name of the piece, so equal stretches are equal."""
    name = "+".join(f.origin.node for f in part if isinstance(f, Atom))
    return (Atom(high - low, Origin(axis_kind(part), name, (low, high))),) if high > low + 1 else ()


def _other(context: Context, type_: TensorType, dim: int) -> Lifted | Refusal:
    axis = type_.axes[dim]
    if has_batch(axis) and is_merged(type_):
        return Refusal("it takes some of the images")
    if is_merged_axis(axis):
        return Refusal("it takes some of the tokens by position")
    return _fresh(context, type_, dim)


def _fresh(context: Context, type_: TensorType, dim: int) -> Lifted:
    kind = axis_kind(type_.axes[dim])
    results = []
    for index, shape in enumerate(context.shapes):
        atom = Atom(shape[dim], Origin(kind, context.call.node.name, (index,)))
        results.append(TensorType((*type_.axes[:dim], (atom,), *type_.axes[dim + 1 :])))
    return Lifted(tuple(results))


def select(context: Context) -> Lifted | Refusal:
    """``select``: one position of an axis. A protected token keeps its place, counted anew."""
    type_ = context.types["self"]
    dim = context.dim(context.call["dim"], type_.rank)
    axis, index = type_.axes[dim], context.call["index"]
    result = TensorType((*type_.axes[:dim], *type_.axes[dim + 1 :]))
    if has_batch(axis) and extent(axis) > 1 and is_merged(type_):
        return Refusal("it takes some of the images")
    if not is_merged_axis(axis):
        return one(result)
    if not isinstance(index, int):
        return Refusal("it picks a token by a computed position")
    index %= extent(axis)
    cut = cut_axis(axis, index, index + 1)
    if cut is None or has_stream(cut[0]):
        return Refusal("it picks one of the merged tokens by position")
    return one(result, arguments={"index": cut[1]})


def split(context: Context) -> Lifted | Refusal:
    """``split``, ``split_with_sizes``, ``chunk``, ``tensor_split``: pieces on borders."""
    type_ = context.types["self"]
    dim = context.dim(context.call["dim"], type_.rank)
    axis = type_.axes[dim]
    sizes = [shape[dim] for shape in context.shapes]
    starts = [0, *itertools.accumulate(sizes)]
    if context.one_image and len(sizes) > 1 and is_plain_row(axis):
        # Images packed in one row: the same stretch of queries, keys and values is one image.
        found = [stretch(axis, a, b) for a, b in itertools.pairwise(starts)]
    else:
        cuts = [cut_axis(axis, a, b) for a, b in itertools.pairwise(starts)]
        found = [cut[0] for cut in cuts if cut is not None]
        if len(found) < len(cuts):
            return _other(context, type_, dim)
    results = tuple(
        TensorType((*type_.axes[:dim], piece, *type_.axes[dim + 1 :])) for piece in found
    )
    if not is_merged_axis(axis):
        return Lifted(results)
    name = next((n for n in ("split_sizes", "split_size") if n in context.call.arguments), None)
    if name is None or not isinstance(context.call[name], (list, tuple)):
        return Refusal("it cuts the tokens into even parts")
    return Lifted(results, arguments={name: [count(piece) for piece in found]})


def unbind(context: Context) -> Lifted | Refusal:
    """``unbind``: an axis without merged tokens falls into its positions."""
    type_ = context.types["self"]
    dim = context.dim(context.call["dim"], type_.rank)
    if has_batch(type_.axes[dim]) and extent(type_.axes[dim]) > 1 and is_merged(type_):
        return Refusal("it takes the images apart")
    if is_merged_axis(type_.axes[dim]):
        return Refusal("it takes the tokens apart")
    return Lifted(
        tuple(TensorType((*type_.axes[:dim], *type_.axes[dim + 1 :])) for _ in context.shapes)
    )
