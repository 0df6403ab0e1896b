"""Views of an image that share its place in the batch, and are taken apart: each has its tokens.

f0, f1 = encoder(cat([image0, image1])).chunk(2)     two rows of tokens, not one twice
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tome_fx.graph.axes import Atom, Axis, Concat, Origin, TensorType, extent, is_merged
from tome_fx.graph.regroup import axis_kind
from tome_fx.rules.base import Context, Lifted, Refusal, Rule


def parting(rule: Rule) -> Callable[[Context], Lifted | Refusal]:
    """``rule``, with tokens of their own for what it takes of the views."""

    def parted(context: Context) -> Lifted | Refusal:
        answer, type_ = rule(context), context.types["self"]
        axis = type_.axes[context.dim(context.call.get("dim", 0), type_.rank)]
        if isinstance(answer, Refusal) or not _of_views(axis) or is_merged(type_):
            return answer
        name = context.call.node.name
        rows = [_own(t, f"{name}_{i}") for i, t in enumerate(answer.results) if axis not in t.axes]
        return replace(answer, results=tuple(rows)) if len(rows) == len(answer.results) else answer

    return parted


def _of_views(axis: Axis) -> bool:
    return any(isinstance(f, Atom) and f.origin.kind == "images" for f in axis)


def _own(type_: TensorType, name: str) -> TensorType:
    return TensorType(tuple(_named(axis, name, (i,)) for i, axis in enumerate(type_.axes)))


def _named(axis: Axis, name: str, place: tuple[int, ...]) -> Axis:
    """Places of an image by a new name; tokens of a stream, views of one image, keep theirs."""
    if len(axis) == 1 and isinstance(axis[0], Concat):
        parts = (_named(part, name, (*place, i)) for i, part in enumerate(axis[0].parts))
        return (Concat(tuple(parts)),)
    plain = len(axis) > 0 and all(isinstance(f, Atom) for f in axis)
    if not plain or axis_kind(axis) != "conv" or extent(axis) == 1:
        return axis
    return (Atom(extent(axis), Origin("conv", name, place)),)
