"""Ops that read only a shape, and ops over a grid: where images and new axes come from."""

from __future__ import annotations

from collections.abc import Sequence

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Concat,
    Origin,
    TensorType,
    extent,
    has_batch,
    has_stream,
    is_merged,
)
from tome_fx.graph.calls import Call
from tome_fx.graph.convolutions import sees_one_place
from tome_fx.graph.frames import mixes_images
from tome_fx.graph.joined import concat
from tome_fx.graph.regroup import axis_kind, factor_kind
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, merged_along, one
from tome_fx.rules.layout import sized

# What these make is not the same at each position of an axis.
_UNEVEN = ("aten.arange", "aten.rand", "aten.randn")


def like(context: Context) -> Lifted | Refusal:
    """``zeros_like`` and its kin: a new value on the axes of another."""
    return one(as_intensive(context.types["self"]))


def factory(context: Context) -> Lifted | Refusal:
    """``zeros``, ``full``, ``new_empty``, ``arange``, ...: axes of written sizes."""
    sizes = context.call.get("size")
    rows = list(sizes) if isinstance(sizes, (list, tuple)) else [None] * len(context.shape)
    axes = [sized(context, size, context.shape[i], i) for i, size in enumerate(rows)]
    if context.call.name in _UNEVEN:
        name = context.call.node.name
        axes = [(Atom(n, Origin("unknown", name, (i,))),) for i, n in enumerate(context.shape)]
    narrow: list[Axis] = [
        () if n == 1 else axis for n, axis in zip(context.shape, axes, strict=True)
    ]
    return one(TensorType(tuple(narrow)))


def convolution(context: Context) -> Lifted | Refusal:
    """A convolution: with a kernel of one position a linear on axis 1, else an op over a grid."""
    call, type_ = context.call, context.types["input"]
    axis = type_.rank - call["weight"].meta["val"].dim() + 1
    if not sees_one_place(call) or axis < 0:
        return grid(context)
    if has_stream(type_.axes[axis]) or has_batch(type_.axes[axis]):
        return Refusal("it mixes tokens by a weight for each position")
    kind = type_ if call.get("bias") is None else as_intensive(type_)
    channel: Axis = (Atom(context.shape[axis], Origin("channel", call.node.name, (axis,))),)
    result = (*kind.axes[:axis], channel, *kind.axes[axis + 1 :])
    return one(TensorType(result), operands={"input": kind})


def pad(context: Context) -> Lifted | Refusal:
    """``pad``: axes that are not padded stay; constants join an axis as a ``cat`` would.

    So do copies of the axis's own positions, which only all tokens have.
    """
    type_, widths = as_intensive(context.types["self"]), context.call["pad"]
    if not all(isinstance(width, int) for width in widths):
        return Refusal("its widths are not known")
    axes = list(type_.axes)
    name, mode = context.call.node.name, context.call.get("mode", "constant")
    for i in range(len(widths) // 2):
        place, ends = type_.rank - 1 - i, widths[2 * i : 2 * i + 2]
        axis = axes[place]
        if not any(ends):
            continue
        copies = mode != "constant"
        if has_batch(axis) or (merged_along(type_, (place,)) and (copies or min(ends) < 0)):
            return Refusal("it adds tokens that are copies of others, or takes some away")
        if min(ends) >= 0:
            kind = "border" if copies else "literal"
            first, last = ((Atom(n, Origin(kind, name, (place, n))),) for n in ends)
            axes[place] = concat([first, axis, last])
        else:
            axes[place] = (Atom(context.shape[place], Origin("unknown", name, (place,))),)
    return one(TensorType(tuple(axes)), operands={"self": type_})


def _places(call: Call, type_: TensorType, shape: Sequence[int]) -> list[Axis]:
    """The places of ``type_`` that its op makes anew, each of itself and its neighbours.

    Nothing if they do not stay the same places. Of an image's own pixels a convolution makes new
    places, as patches are.
    """
    strides = call.get("stride")
    steps = strides if isinstance(strides, (list, tuple)) else [strides]
    sides = list(map(_inside, type_.axes[2:], shape[2:]))
    same = [extent(axis) for axis in sides] == list(shape[2:])
    known = all(axis_kind(axis) == "conv" for axis in sides if extent(axis) > 1)
    return sides if same and known and bool(steps) and all(step == 1 for step in steps) else []


def _frames(call: Call, type_: TensorType) -> Axis | None:
    """The frames of a clip where a convolution sees one at a time: ``(1, p, p)``, as images would.

    They stay what they are; None for any other convolution.
    """
    weight, axis = call["weight"].meta["val"], type_.axes[2] if type_.rank == 5 else ()
    if weight.dim() != 5:
        return None
    padding = call["padding"]
    still = isinstance(padding, str) or padding[0] == 0
    return axis if weight.shape[2] == 1 and call["stride"][0] == 1 and still else None


def _inside(axis: Axis, size: int) -> Axis:
    """What a ``pad`` has put its borders around, if that has this size."""
    parts = axis[0].parts if len(axis) == 1 and isinstance(axis[0], Concat) else ()
    inner = [part for part in parts if not _is_border(part)]
    return inner[0] if len(inner) == 1 and extent(inner[0]) == size else axis


def _is_border(part: Axis) -> bool:
    kinds = [factor.origin.kind if isinstance(factor, Atom) else "" for factor in part]
    return kinds in (["border"], ["literal"])


def _is_table(type_: TensorType) -> bool:
    """Is a grid one of the model's own, say a table of positions that is brought to another size?

    Its places are no places of an image then, which say more where the two meet.
    """
    sides = [axis for axis in type_.axes[2:] if extent(axis) > 1]
    kinds = {factor_kind(factor) for axis in sides for factor in axis}
    return not has_batch(type_.axes[0]) and bool(sides) and kinds <= {"constant", "literal"}


def grid(context: Context) -> Lifted | Refusal:
    """Convolutions, pooling, padding, resizing: images stay apart, the grid is new."""
    type_ = next(iter(context.types.values()))
    if is_merged(type_):
        return Refusal("it works on the grid")
    conv = context.call.name.startswith("aten.conv")
    frames = _frames(context.call, type_) if conv else None
    seen = range(1 if conv else 2, type_.rank)
    if mixes_images(type_, (i for i in seen if i != 2 or frames is None)):
        return Refusal("it works on the grids of several images")
    rows = not conv or type_.rank == context.call["weight"].meta["val"].dim()
    # In a program for one image, its patches may stand in the place of images.
    apart = type_.axes and (has_batch(type_.axes[0]) or (context.one_image and rows))
    if not apart or has_stream(type_.axes[0]):
        return Refusal("its images are not on the first axis")
    whole = all(isinstance(factor, Batch) for factor in type_.axes[0])
    if not whole and context.shape[0] != extent(type_.axes[0]):
        return Refusal("its first axis changes size")
    name = context.call.node.name
    # A place that stays itself has seen its neighbours, and equal tokens have unequal ones.
    stays = _places(context.call, as_intensive(type_), context.shape)
    places = "constant" if _is_table(type_) else "conv"
    axes: list[Axis] = [type_.axes[0]]
    for place, size in enumerate(context.shape[1:], start=1):
        kind = places if place > 1 else "channel" if conv else "unknown"
        if not conv and place == 1 and size == extent(type_.axes[1]):
            axes.append(type_.axes[1])
        elif place > 1 and stays:
            axes.append(stays[place - 2])
        elif place == 2 and frames:
            axes.append(frames)
        else:
            axes.append((Atom(size, Origin(kind, name, (place,))),) if size != 1 else ())
    result = TensorType(tuple(axes))
    return Lifted(tuple(result for _ in context.shapes[:1]), tells_apart=bool(stays))


def unfold(context: Context) -> Lifted | Refusal:
    """``unfold``: windows along an axis, the positions of each on a new last axis.

    Windows of an image are places of it, as those of a convolution are.
    """
    type_ = context.types["self"]
    dim = context.dim(context.call["dimension"], type_.rank)
    axis, name = type_.axes[dim], context.call.node.name
    if has_stream(axis) or has_batch(axis):
        return Refusal("it takes windows of the tokens")
    kind = "conv" if axis_kind(axis) in ("conv", "input") else "unknown"
    kinds = (dim, kind), (type_.rank, "unknown")
    windows, inside = (
        (Atom(context.shape[place], Origin(of, name, (place,))),)
        if context.shape[place] > 1
        else ()
        for place, of in kinds
    )
    return one(TensorType((*type_.axes[:dim], windows, *type_.axes[dim + 1 :], inside)))
