"""Images and frames that share a place of the batch, and are taken apart: each has its tokens.

    f0, f1 = encoder(cat([image0, image1])).chunk(2)     two rows of tokens, not one twice
    f0, f1 = encoder(clip.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)

Token 7 of one frame is not token 7 of the other once each goes its own way: from where they part,
the places of each have a name of their own, and a match in one says nothing of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from tome_fx.graph.regroup import axis_kind, factor_kind
from tome_fx.rules.base import Context, Lifted, Refusal, Rule


def side_by_side(types: Sequence[TensorType], but: int | None = None) -> bool:
    """Do the values hold different places, those of several images say, and not one's twice?

    ``but``: an axis that does not count, that along which they are joined.
    """
    rows = [
        tuple(
            unmerged(axis)
            for i, axis in enumerate(type_.axes)
            if i != but and axis_kind(axis) == "conv"
        )
        for type_ in types
    ]
    return any(row != rows[0] for row in rows if len(row) == len(rows[0]))


def parting(rule: Rule) -> Callable[[Context], Lifted | Refusal]:
    """``rule``, with tokens of their own for what it takes of several images or frames."""

    def parted(context: Context) -> Lifted | Refusal:
        answer, type_ = rule(context), context.types["self"]
        if isinstance(answer, Refusal):
            return answer
        dim = context.dim(_dim(context), type_.rank)
        first = None if _takes_all(answer, type_, dim) else _first_of_each(type_, dim)
        if first is None:
            return answer
        if any(map(has_stream, type_.axes[first:])):
            return Refusal("it takes images or frames apart, each with tokens of its own")
        name = context.call.node.name
        rows = (_own(type_, f"{name}_{i}", first) for i, type_ in enumerate(answer.results))
        return replace(answer, results=tuple(rows))

    return parted


def _dim(context: Context) -> int:
    """The axis that a call takes places of; of ``x[:, index]`` the first with an index."""
    indices = context.call.get("indices")
    if indices is None:
        return int(context.call.get("dim", 0))
    return next(i for i, index in enumerate(indices) if index is not None)


def _takes_all(answer: Lifted, type_: TensorType, dim: int) -> bool:
    whole = extent(type_.axes[dim])
    return any(t.rank == type_.rank and extent(t.axes[dim]) == whole for t in answer.results)


def _first_of_each(type_: TensorType, dim: int) -> int | None:
    """The first axis with places of one image or frame, where axis ``dim`` holds several of them.

    Images and frames that were put side by side are known; else they are the outermost places.
    """
    axis = type_.axes[dim]
    if {"images", "frames"} & set(map(factor_kind, axis)):
        return 0
    inner = any(axis_kind(outer) == "conv" for outer in type_.axes[:dim])
    tokens = has_stream(axis) and not has_batch(axis)
    return None if inner or tokens or axis_kind(axis) != "conv" else dim


def _own(type_: TensorType, name: str, first: int) -> TensorType:
    """``type_`` with its places from axis ``first`` on by a new name."""
    own = (_named(axis, name, (i,)) for i, axis in enumerate(type_.axes[first:]))
    return TensorType((*type_.axes[:first], *own))


def _named(axis: Axis, name: str, place: tuple[int, ...]) -> Axis:
    if len(axis) == 1 and isinstance(axis[0], Concat):
        parts = (_named(part, name, (*place, i)) for i, part in enumerate(axis[0].parts))
        return (Concat(tuple(parts)),)
    plain = len(axis) > 0 and all(isinstance(f, Atom) for f in axis)
    if not plain or axis_kind(axis) != "conv" or extent(axis) == 1:
        return axis
    kind = "input" if all(factor_kind(f) == "input" for f in axis) else "conv"
    return (Atom(extent(axis), Origin(kind, name, place)),)
