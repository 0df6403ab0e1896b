"""Ops that read only a shape, and ops over a grid: where images and new axes come from."""

from __future__ import annotations

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Origin,
    TensorType,
    extent,
    has_batch,
    has_stream,
    is_merged,
)
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, one
from tome_fx.rules.layout import sized


def like(context: Context) -> Lifted | Refusal:
    """``zeros_like`` and its kin: a new value on the axes of another."""
    return one(as_intensive(context.types["self"]))


def factory(context: Context) -> Lifted | Refusal:
    """``zeros``, ``full``, ``new_empty``, ``arange``, ...: axes of written sizes."""
    sizes = context.call.get("size")
    rows = list(sizes) if isinstance(sizes, (list, tuple)) else [None] * len(context.shape)
    axes = [sized(context, size, context.shape[i], i) for i, size in enumerate(rows)]
    narrow: list[Axis] = [
        () if n == 1 else axis for n, axis in zip(context.shape, axes, strict=True)
    ]
    return one(TensorType(tuple(narrow)))


def grid(context: Context) -> Lifted | Refusal:
    """Convolutions, pooling, padding, resizing: images stay apart, the grid is new."""
    type_ = next(iter(context.types.values()))
    if is_merged(type_):
        return Refusal("it works on the grid")
    if not type_.axes or not has_batch(type_.axes[0]) or has_stream(type_.axes[0]):
        return Refusal("its images are not on the first axis")
    whole = all(isinstance(factor, Batch) for factor in type_.axes[0])
    if not whole and context.shape[0] != extent(type_.axes[0]):
        return Refusal("its first axis changes size")
    name = context.call.node.name
    conv = context.call.name.startswith("aten.conv")
    axes: list[Axis] = [type_.axes[0]]
    for place, size in enumerate(context.shape[1:], start=1):
        kind = ("channel" if place == 1 else "conv") if conv else "unknown"
        if not conv and place == 1 and size == extent(type_.axes[1]):
            axes.append(type_.axes[1])
        else:
            axes.append((Atom(size, Origin(kind, name, (place,))),) if size != 1 else ())
    return Lifted(tuple(TensorType(tuple(axes)) for _ in context.shapes[:1]))
