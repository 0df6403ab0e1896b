"""Images and frames that share a place of the batch, and are taken apart: each has its tokens.

    f0, f1 = encoder(cat([image0, image1])).chunk(2)     two rows of tokens, not one twice
    f0, f1 = encoder(clip.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)

Token 7 of one frame is not token 7 of the other once each goes its own way: from where they part,
the places of each have a name of their own, and a match in one says nothing of the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Origin,
    TensorType,
    extent,
    has_batch,
    has_stream,
    unmerged,
)
from tome_fx.graph.calls import Call
from tome_fx.graph.regroup import axis_kind, factor_kind
from tome_fx.rules.base import Context, Lifted, Refusal, Rule


def side_by_side(types: Sequence[TensorType], but: int | None = None) -> bool:
    """Do the values hold different places, those of several images say, and not one's twice?

    ``but``: an axis that does not count, that along which they are joined.
    """
    rows = [tuple(map(unmerged, _row(type_, but))) for type_ in types]
    return any(row != rows[0] for row in rows if len(row) == len(rows[0]))


def rows_of(types: Iterable[TensorType]) -> set[tuple[Axis, ...]]:
    """The different rows of places that values hold."""
    return {row for row in map(_row, types) if row}


def _row(type_: TensorType, but: int | None = None) -> tuple[Axis, ...]:
    """The axes of places, but for one."""
    axes = enumerate(type_.axes)
    return tuple(axis for i, axis in axes if i != but and axis_kind(axis) == "conv")


def parting(rule: Rule) -> Rule:
    """``rule``, with tokens of their own for what it takes of several images or frames."""

    def parted(context: Context) -> Lifted | Refusal:
        answer, type_ = rule(context), context.types["self"]
        if isinstance(answer, Refusal) or not _takes_images(context.call, type_, answer.results):
            return answer
        if any(map(has_stream, itertools.chain(*(t.axes for t in answer.results)))):
            return Refusal("it takes images or frames apart, each with tokens of its own")
        return replace(answer, results=_own(context.call, type_, answer.results))

    return parted


def parts(call: Call, type_: TensorType, results: tuple[TensorType, ...]) -> bool:
    """Would tokens of ``type_``, without streams, be others behind a call by :func:`parting`?"""
    return _takes_images(call, type_, results) and _own(call, type_, results) != results


def _takes_images(call: Call, type_: TensorType, results: tuple[TensorType, ...]) -> bool:
    """Does a call take less than all of an axis that holds several images or frames?

    Those that were put side by side are known; else they are the outermost places, or what is gone
    behind the call.
    """
    dim = _dim(call) % max(1, type_.rank)
    axis = type_.axes[dim]
    if any(t.rank == type_.rank and extent(t.axes[dim]) == extent(axis) for t in results):
        return False
    if {"images", "frames"} & set(map(factor_kind, axis)):
        return True
    dropped = all(t.rank < type_.rank for t in results)
    inner = not dropped and any(axis_kind(outer) == "conv" for outer in type_.axes[:dim])
    tokens = has_stream(axis) and not has_batch(axis)
    return not inner and not tokens and axis_kind(axis) == "conv"


def _dim(call: Call) -> int:
    """The axis that a call takes places of; of ``x[:, index]`` the first with an index."""
    indices = call.get("indices")
    if indices is None:
        return int(call.get("dim", 0))
    return next(i for i, index in enumerate(indices) if index is not None)


def _own(call: Call, type_: TensorType, results: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    """``results`` with their places by new names, but for the axis that the call takes of."""
    dim = _dim(call) % max(1, type_.rank)

    def own(result: int, i: int, axis: Axis) -> Axis:
        taken = i == dim and results[result].rank == type_.rank
        return axis if taken else _named(axis, call.node.name, (result, i))

    return tuple(
        TensorType(tuple(own(result, i, axis) for i, axis in enumerate(t.axes)))
        for result, t in enumerate(results)
    )


def _named(axis: Axis, name: str, place: tuple[int, ...]) -> Axis:
    if len(axis) == 1 and isinstance(axis[0], Concat):
        parts = (_named(part, name, (*place, i)) for i, part in enumerate(axis[0].parts))
        return (Concat(tuple(parts)),)
    plain = len(axis) > 0 and all(isinstance(f, Atom) for f in axis)
    if not plain or axis_kind(axis) != "conv" or extent(axis) == 1:
        return axis
    kind = "input" if all(factor_kind(f) == "input" for f in axis) else "conv"
    return (Atom(extent(axis), Origin(kind, name, place)),)
