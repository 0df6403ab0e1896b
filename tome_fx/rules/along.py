"""Ops that move, order or look up positions of an axis: exact on any axis without merged tokens.

On a token axis they make new positions: what follows is a stream of its own.
"""

from __future__ import annotations

import torch
from torch.fx import Node

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
    unmerged,
)
from tome_fx.graph.calls import bind
from tome_fx.graph.grids import has_grid
from tome_fx.graph.regroup import axis_kind, factor_kind
from tome_fx.graph.unify import unify
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, merged_along, one

# What an index may have gone through since it was counted.
_LAID_OUT = ("aten.unsqueeze", "aten.slice", "aten.add", "aten.to", "aten._to_copy", "aten.clone",
             "aten.contiguous", "aten.reshape", "aten.detach")  # fmt: skip


def along(context: Context) -> Lifted | Refusal:
    """``flip``, ``roll``, ``sort``, ``topk``, ``argmax``, ...: within the axes that they name.

    Rows of them are independent: of logits, whose keys must come back one by one, the queries stay
    merged. So it is where fewer positions come out, which cannot meet the merged ones again.
    """
    type_ = as_intensive(context.types["self"])
    dims = context.call.get("dims", context.call.get("dim"))
    if dims is None or dims == []:
        return Refusal("it runs over all axes at once")
    at = [context.dim(d, type_.rank) for d in ([dims] if isinstance(dims, int) else dims)]
    told = ""
    if merged_along(type_, tuple(at)):
        told = "it tells tokens apart by their place or order"
        if not _stand_alone(context, type_, at):
            return Refusal(told)
        axes = (unmerged(axis) if i in at else axis for i, axis in enumerate(type_.axes))
        type_ = TensorType(tuple(axes))
        if not is_merged(type_):
            return Refusal(told)
    if any(has_batch(type_.axes[i]) for i in at):
        return Refusal("it moves images")
    results = tuple(_changed(context, type_, at, shape) for shape in context.shapes)
    return Lifted(results, operands={"self": type_}, unmerges=told)


def _stand_alone(context: Context, type_: TensorType, dims: list[int]) -> bool:
    """Can ``dims`` come back without the other axes of the one operand, and stay apart from it?"""
    plain = not has_grid(type_) and all(len(type_.axes[i]) == 1 for i in dims)
    fewer = all(_is_fewer(type_, dims, shape) for shape in context.shapes)
    return plain and fewer and len(context.types) == 1


def _is_fewer(type_: TensorType, dims: list[int], shape: tuple[int, ...]) -> bool:
    """Does an output hold a few of the positions on ``dims``, or one in place of them all?"""
    if len(shape) < type_.rank:
        return True
    return all(2 * shape[i] <= extent(type_.axes[i]) for i in dims)


def _changed(
    context: Context, type_: TensorType, dims: list[int], shape: tuple[int, ...]
) -> TensorType:
    """``type_`` with new positions on ``dims``, or without them where the op reduces."""
    keeps = len(shape) == type_.rank
    axes: list[Axis] = []
    for i, axis in enumerate(type_.axes):
        if i not in dims:
            axes.append(axis)
        elif keeps:
            axes.append(_new(context, axis_kind(axis), i, shape[i]))
    return TensorType(tuple(axes))


def _new(context: Context, kind: str, place: int, size: int) -> Axis:
    atom = Atom(size, Origin(kind, context.call.node.name, (place,)))
    return (atom,) if size != 1 else ()


def index_select(context: Context) -> Lifted | Refusal:
    """``index_select(self, dim, index)``: positions of one axis by number."""
    type_, index = as_intensive(context.types["self"]), context.types["index"]
    dim = context.dim(context.call["dim"], type_.rank)
    return _looked_up(context, type_, index, dim)


def index(context: Context) -> Lifted | Refusal:
    """``self[..., index, ...]`` with one index tensor: its axes take the place of the axis."""
    type_ = as_intensive(context.types["self"])
    named = [i for i, value in enumerate(context.call["indices"]) if value is not None]
    if len(named) > 1:
        return _of_each_image(context, type_, named) or _every_place(context, type_, named)
    if len(named) != 1 or context.dtype(f"indices.{named[0]}").is_floating_point:
        return Refusal("it looks up along several axes")
    path = f"indices.{named[0]}"
    if str(context.dtype(path)) in ("torch.bool", "torch.uint8"):
        return Refusal("how much it takes depends on values")
    return _looked_up(context, type_, context.types[path], named[0])


def _looked_up(
    context: Context, type_: TensorType, index: TensorType, dim: int
) -> Lifted | Refusal:
    axis = type_.axes[dim]
    if merged_along(type_, (dim,)):
        return Refusal("it picks tokens by number")
    if len(axis) > 1 and isinstance(axis[0], Batch) and index.rank and _starts(index, axis[0]):
        return _of_folded(context, type_, index, dim)
    if has_batch(axis) or (any(map(has_batch, index.axes)) and any(map(has_batch, type_.axes))):
        return Refusal("it picks images by number")
    new = tuple(_picked(context, axis, a, i) for i, a in enumerate(index.axes))
    return one(
        TensorType((*type_.axes[:dim], *new, *type_.axes[dim + 1 :])), operands={"self": type_}
    )


def _starts(index: TensorType, images: Batch) -> bool:
    return index.axes[0][:1] == (images,)


def _of_folded(context: Context, type_: TensorType, index: TensorType, dim: int) -> Lifted:
    """``self[arange(B) * N + index]``: images and places on one axis, by numbers of each image.

    What stands at the numbers of image ``b`` is data of image ``b`` from there on.
    """
    images, places = type_.axes[dim][:1], type_.axes[dim][1:]
    rest = (index.axes[0][1:], *index.axes[1:])
    new = [_picked(context, places, axis, i) for i, axis in enumerate(rest)]
    axes = (*type_.axes[:dim], (*images, *new[0]), *new[1:], *type_.axes[dim + 1 :])
    return one(TensorType(axes), operands={"self": type_})


def _picked(context: Context, axis: Axis, index: Axis, place: int) -> Axis:
    """What an axis of an index becomes: of tokens new ones, unless the index is of places too.

    Numbers that the model is given are none: what they pick of an image are its tokens.
    """
    if not has_stream(axis) and axis_kind(axis) != "conv":
        return index
    places = any(f.origin.kind == "conv" for f in index if isinstance(f, Atom))
    own = places or has_stream(index) or has_batch(index)
    if own:
        return index
    # Frames that are picked, or put in another order, are frames.
    kind = "input" if set(map(factor_kind, axis)) == {"input"} else axis_kind(axis)
    return _new(context, kind, place, extent(index))


def _of_each_image(
    context: Context, type_: TensorType, named: list[int]
) -> Lifted | Refusal | None:
    """``self[arange(B)[:, None], index]``: places of each image by its own numbers; a gather."""
    images, index = (context.types[f"indices.{dim}"] for dim in named[:2])
    counted = named == [0, 1] and _counts_up(context.call["indices"][0])
    if not counted or images.rank != 2 or index.rank != 2 or extent(images.axes[1]) != 1:
        return None
    # Numbers that the code draws are of images by their extent alone.
    if not has_batch(type_.axes[0]):
        return None
    if merged_along(type_, (1,)):
        return Refusal("it picks tokens by number")
    batch = unify(type_.axes[0], index.axes[0])
    if batch is None or unify(batch, images.axes[0]) is None or any(map(has_stream, index.axes)):
        return None
    picked = _picked(context, type_.axes[1], index.axes[1], 1)
    return one(TensorType((batch, picked, *type_.axes[2:])), operands={"self": type_})


def _every_place(context: Context, type_: TensorType, named: list[int]) -> Lifted | Refusal:
    """``self[arange(B)[:, None], arange(N)]``: each position once, in order, laid out anew.

    Libraries read masks of padding so.
    """
    rank = max(context.types[f"indices.{i}"].rank for i in named)
    axes: list[Axis] = [()] * rank
    for dim in named:
        index = context.types[f"indices.{dim}"]
        wide = [i - index.rank for i, axis in enumerate(index.axes) if extent(axis) > 1]
        counts = _counts_up(context.call["indices"][dim])
        if not counts or len(wide) != 1 or extent(axes[wide[0]]) > 1:
            return Refusal("it looks up along several axes")
        if extent(index.axes[wide[0]]) != extent(type_.axes[dim]):
            return Refusal("it looks up along several axes")
        axes[wide[0]] = type_.axes[dim]
    if named != list(range(len(named))) or merged_along(type_, tuple(named)):
        return Refusal("it looks up along several axes")
    return one(TensorType((*axes, *type_.axes[len(named) :])), operands={"self": type_})


def _counts_up(index: Node) -> bool:
    """Does an index hold 0, 1, 2, ...?"""
    while isinstance(index.target, torch._ops.OpOverload):
        call = bind(index)
        if call.name == "aten.arange":
            return bool(call.get("start", 0) == 0 and call.get("step", 1) == 1)
        moved = call.name == "aten.add" and call["other"] != 0
        cut = call.name == "aten.slice" and (call["start"] not in (None, 0) or call["step"] != 1)
        if call.name not in _LAID_OUT or moved or cut:
            return False
        index = call["self"]
    return False


def gather(context: Context) -> Lifted | Refusal:
    """``gather(self, dim, index)``: positions of one axis, others for each place of the rest."""
    name = "index" if "index" in context.types else "indices"  # of take_along_dim
    type_, index = as_intensive(context.types["self"]), as_intensive(context.types[name])
    if context.call.get("dim") is None:
        return Refusal("it picks values of all axes at once")
    dim = context.dim(context.call["dim"], type_.rank)
    if merged_along(type_, (dim,)) or has_batch(type_.axes[dim]):
        return Refusal("it picks tokens by number")
    axes: list[Axis] = []
    for i, (own, other) in enumerate(zip(type_.axes, index.axes, strict=True)):
        wide = own if name == "indices" and extent(other) == 1 else other
        axis = _picked(context, own, other, i) if i == dim else unify(own, wide)
        if axis is None or (i != dim and merged_along(type_, (i,)) != merged_along(index, (i,))):
            return Refusal("its index is about different tokens")
        axes.append(axis)
    return one(TensorType(tuple(axes)), operands={"self": type_, name: index})


def prelu(context: Context) -> Lifted | Refusal:
    """``prelu(self, weight)``: a slope for each position of axis 1, or one for all."""
    type_ = as_intensive(context.types["self"])
    shared = extent(next(iter(context.types["weight"].axes), ())) == 1
    if not shared and merged_along(type_, (1,)):
        return Refusal("it has a weight for each position")
    return one(type_, operands={"self": type_})


def each_alone(context: Context) -> Lifted | Refusal:
    """``bucketize``, ``view_as_complex``, ``one_hot``, ...: each value alone, by its first operand.

    The last axis may come or go.
    """
    path = next(iter(context.types))
    type_ = as_intensive(context.types[path])
    gone, rank = type_.rank - len(context.shape), len(context.shape)
    if gone > 1 or gone < -1 or (gone == 1 and (has_stream(type_.axes[-1]))):
        return Refusal("it does not keep the axes")
    axes = type_.axes[:rank]
    if gone == -1:
        axes = (*axes, (Atom(context.shape[-1], Origin("unknown", context.call.node.name)),))
    return one(TensorType(axes), operands={path: type_})
