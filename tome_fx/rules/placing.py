"""Ops that put values to places of an axis by number: exact on any axis without merged tokens.

On a token axis they make new positions, as a decoder does that puts back what an encoder has seen:
what stands at a place says nothing of what another value of the same axis has there.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    extent,
    has_stream,
    is_merged_axis,
)
from tome_fx.graph.frames import mixes_images
from tome_fx.graph.regroup import axis_kind
from tome_fx.graph.unify import unify_all
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, merged_along, one

_WHY = "it puts tokens to places by number"


def scatter(context: Context) -> Lifted | Refusal:
    """``scatter``, ``scatter_add``: values of an image to places that an index of it names."""
    types = {path: as_intensive(type_) for path, type_ in context.types.items()}
    if len({type_.rank for type_ in types.values()}) > 1:
        return Refusal(_WHY)
    return _placed(context, types, context.call["dim"])


def index_copy(context: Context) -> Lifted | Refusal:
    """``index_copy``, ``index_add``: slices to places that a row of numbers names."""
    types = {path: as_intensive(context.types[path]) for path in ("self", "source")}
    return _placed(context, types, context.call["dim"])


def index_put(context: Context) -> Lifted | Refusal:
    """``self[:, index] = values``, with one index in a row."""
    named = [i for i, value in enumerate(context.call["indices"]) if value is not None]
    if len(named) != 1 or not isinstance(context.call["indices"][named[0]], Node):
        return Refusal("it writes along several axes")
    index, path = context.types[f"indices.{named[0]}"], f"indices.{named[0]}"
    if index.rank != 1 or str(context.dtype(path)) in ("torch.bool", "torch.uint8"):
        return Refusal("where it writes depends on values")
    types = {path: as_intensive(context.types[path]) for path in ("self", "values")}
    if types["values"].rank != types["self"].rank:
        if any(map(has_stream, types["values"].axes)):
            return Refusal(_WHY)
        del types["values"]
    return _placed(context, types, named[0])


def _placed(context: Context, types: Mapping[str, TensorType], dim: int) -> Lifted | Refusal:
    """The type of ``self`` with values put along ``dim``."""
    own = types["self"]
    dim = context.dim(dim, own.rank)
    given = [type_ for type_ in context.types.values() if type_.rank == own.rank]
    if any(merged_along(t, (dim,)) or mixes_images(t, (dim,)) for t in given):
        return Refusal(_WHY)
    axes: list[Axis] = []
    for place in range(own.rank):
        here = [type_.axes[place] for type_ in types.values()]
        if place == dim:
            axes.append(_row(context, own.axes[dim], here, dim))
            continue
        same = [axis for axis in here if extent(axis) == extent(own.axes[place])]
        axis = unify_all(same)
        # On merged tokens only what has all of these, and knows which.
        if axis is None or (any(map(is_merged_axis, here)) and not all(a == axis for a in here)):
            return Refusal(_WHY)
        axes.append(axis)
    return one(TensorType(tuple(axes)), operands=types)


def _row(context: Context, own: Axis, given: list[Axis], place: int) -> Axis:
    """The axis that values are put on: new tokens, where any are on it or are put there."""
    if extent(own) == 1:
        return own
    tokens = any(has_stream(axis) or axis_kind(axis) == "conv" for axis in given)
    origin = Origin("conv" if tokens else "unknown", context.call.node.name, (place,))
    return (Atom(extent(own), origin),)
