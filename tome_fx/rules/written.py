"""Writing a piece of a value anew: what in-place assignments are in a functional program."""

from __future__ import annotations

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    count,
    extent,
    has_batch,
    has_stream,
    is_merged_axis,
    streams_of_axis,
)
from tome_fx.graph.joined import concat
from tome_fx.graph.unify import unify
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, one
from tome_fx.rules.local import demands
from tome_fx.rules.pieces import cut_axis, span


def written(context: Context) -> Lifted | Refusal:
    """``select_scatter`` and ``slice_scatter``: a value with a piece of it written anew.

    On an axis without merged tokens, or on the border of a protected one, counted anew.
    """
    call, type_ = context.call, context.types["self"]
    dim = context.dim(call["dim"], type_.rank)
    axis, whole = type_.axes[dim], extent(type_.axes[dim])
    if call.name == "aten.select_scatter":
        index = call["index"]
        start = index % whole if isinstance(index, int) and whole else None
        end = None if start is None else start + 1
        rest = (*type_.axes[:dim], *type_.axes[dim + 1 :])
    else:
        start, end = span(context, whole)
        rest = type_.axes
    tokens = _of_tokens(context, type_, dim, (start, end))
    if tokens is not None:
        return tokens
    cut = None if start is None or end is None else cut_axis(axis, start, end)
    merged = is_merged_axis(axis)
    if merged and (cut is None or call.get("step", 1) != 1):
        return Refusal("it writes some of the tokens by position")
    if any(stream.extensive for a in type_.axes for stream in streams_of_axis(a)):
        return Refusal("it writes into group totals")
    arguments: dict[str, object] = {}
    if cut is not None and merged:
        piece, first = cut
        rest = tuple(
            piece if i == dim and len(rest) == type_.rank else a for i, a in enumerate(rest)
        )
        last = first + count(piece)
        arguments = {"index": first} if "index" in call.arguments else {"start": first, "end": last}
    wanted = demands({"src": context.types["src"]}, TensorType(tuple(rest)))
    return one(type_, operands=wanted, arguments=arguments)


def _of_tokens(
    context: Context, type_: TensorType, dim: int, where: tuple[int | None, int | None]
) -> Lifted | None:
    """Tokens written into a value that is about none yet: from here on it is about them."""
    src = as_intensive(context.types["src"])
    if src.rank != type_.rank:
        goal = [*src.axes[:dim], type_.axes[dim], *src.axes[dim:]]
    else:
        goal = list(src.axes)
        piece = _around(context, type_.axes[dim], goal[dim], where)
        if piece is None:
            return None
        goal[dim] = piece
    axes: list[Axis] = []
    for own, new in zip(type_.axes, goal, strict=True):
        axis = unify(own, new) if extent(own) == extent(new) else None
        if axis is None or (has_stream(own) and not has_stream(new)):
            return None
        axes.append(axis)
    result = TensorType(tuple(axes))
    if result == type_:
        return None
    arguments: dict[str, object] = {}
    if src.rank == type_.rank and where[0] is not None:
        first, end = where[0], where[0] if where[1] is None else where[1]
        cut = cut_axis(axes[dim], first, end)
        first = first if cut is None or first == end else cut[1]  # others may merge in front
        arguments = {"start": first, "end": first + count(src.axes[dim])}
    return one(result, operands={"self": result, "src": src}, arguments=arguments)


def _around(
    context: Context, own: Axis, new: Axis, where: tuple[int | None, int | None]
) -> Axis | None:
    """The axis that a plain one becomes when ``new`` is written to a stretch of it."""
    start, end = where
    if start is None or end is None or context.call.get("step", 1) != 1:
        return None
    if end - start == extent(own):
        return new
    cut = cut_axis(own, start, end)
    met = new if cut is None else unify(cut[0], new)
    if has_batch(own) or met is None or (cut is None and has_stream(own)):
        return None
    if cut is not None and met == cut[0]:
        return own
    ends = []
    for place, (low, high) in enumerate(((0, start), (end, extent(own)))):
        part = cut_axis(own, low, high)
        ends.append(_plain(high - low, context.call.node.name, place) if part is None else part[0])
    return concat([ends[0], met, ends[1]])


def _plain(size: int, name: str, place: int) -> Axis:
    return (Atom(size, Origin("literal", name, (place,))),) if size != 1 else ()
