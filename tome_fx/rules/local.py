"""Ops that act on each token alone: pointwise ops, casts, linear, layer and batch norm.

They run unchanged on merged tokens. What remains is the *kind*, members or totals: see `kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Origin,
    TensorType,
    extent,
    has_batch,
    has_stream,
    is_merged,
    is_merged_axis,
    is_uniform,
)
from tome_fx.graph.frames import frames_like, frames_of, mixes_images
from tome_fx.graph.grids import completed
from tome_fx.graph.unify import broadcast
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, merged_along, one
from tome_fx.rules.kinds import kinds, rounds

# Not elementwise: they take the shape of an operand.
_SHAPED = ("aten.expand_as", "aten.copy")


def pointwise(context: Context) -> Lifted | Refusal:
    """Elementwise with broadcasting; data indexed by token is brought to the tokens' level."""
    types = context.types
    result = broadcast(list(types.values()))
    if result is None:
        return Refusal("its operands hold different tokens on one axis")
    found = kinds(context, result)
    if isinstance(found, Refusal):
        return found
    results = tuple(found.result for _ in context.shapes)
    given = found.operands
    if context.call.name not in _SHAPED:
        given = {path: thin(type_, result) for path, type_ in given.items()}
    return Lifted(results, operands=demands(given, found.result, found.summed))


def cast(context: Context) -> Lifted | Refusal:
    """``to``, ``type_as``: another value gives the dtype at most, whatever its shape."""
    type_ = context.types["self"]
    kind = as_intensive(type_) if rounds(context) else type_
    return one(kind, operands={"self": kind})


def thin(type_: TensorType, result: TensorType) -> TensorType:
    """``type_`` with one position where it is the same at all, and meets merged tokens."""
    shift = result.rank - type_.rank
    return TensorType(
        tuple(
            () if is_uniform(axis) and merged_along(result, (i + shift,)) else axis
            for i, axis in enumerate(type_.axes)
        )
    )


def demands(
    types: Mapping[str, TensorType], result: TensorType, summed: frozenset[str] = frozenset()
) -> dict[str, TensorType]:
    """The type to bring each operand to, so that it broadcasts against ``result``.

    A table holds a value for each member; those in ``summed`` are brought to totals.

    A plain axis that meets merged tokens must be merged with them; that makes it differ from image
    to image, so the operand then also needs the batch axis of ``result``.
    """
    wanted: dict[str, TensorType] = {}
    for path, type_ in types.items():
        shift = result.rank - type_.rank
        kind = result if path in summed else as_intensive(result)
        axes = [_meet(axis, kind.axes[i + shift]) for i, axis in enumerate(type_.axes)]
        brought = TensorType(tuple(axes))
        if axes != list(type_.axes) and is_merged(brought):
            brought = with_batch(brought, result)
            pairs = zip(brought.axes, result.axes[result.rank - brought.rank :], strict=True)
            brought = TensorType(tuple(frames_like(axis, goal) for axis, goal in pairs))
            brought = TensorType(tuple(completed(brought.axes, result)))
        wanted[path] = brought
    return wanted


def with_batch(type_: TensorType, result: TensorType) -> TensorType:
    """``type_`` with the batch axis that ``result`` has, padded to its rank where it must be."""
    if any(has_batch(axis) for axis in type_.axes):
        return _in_each_frame(type_, result)
    place = next((i for i, axis in enumerate(result.axes) if has_batch(axis)), None)
    if place is None:
        return type_
    axes: list[Axis] = [()] * (result.rank - type_.rank) + list(type_.axes)
    axes[place] = result.axes[place]
    return _in_each_frame(TensorType(tuple(axes)), result)


def _in_each_frame(type_: TensorType, result: TensorType) -> TensorType:
    """``type_`` with an axis for the frames of ``result`` that have groups of their own."""
    known, shift = frames_of(result), result.rank - type_.rank
    axes = list(type_.axes)
    for i, axis in enumerate(axes):
        goal = result.axes[i + shift]
        if extent(axis) == 1 and goal and all(factor in known for factor in goal):
            axes[i] = goal
    return TensorType(tuple(axes))


def _meet(axis: Axis, target: Axis) -> Axis:
    meets = is_merged_axis(target) and extent(axis) != 1 and not has_stream(axis)
    return target if meets else axis


def cosine(context: Context) -> Lifted | Refusal:
    """``cosine_similarity`` of two values along an axis that holds no tokens."""
    types = {path: as_intensive(type_) for path, type_ in context.types.items()}
    result = broadcast(list(types.values()))
    if result is None:
        return Refusal("its operands hold different tokens on one axis")
    dim = context.dim(context.call["dim"], result.rank)
    if has_stream(result.axes[dim]) or has_batch(result.axes[dim]):
        return Refusal("it compares rows of tokens")
    given = {path: thin(type_, result) for path, type_ in types.items()}
    left = (*result.axes[:dim], *result.axes[dim + 1 :])
    return one(TensorType(left), operands=demands(given, result))


def linear(context: Context) -> Lifted | Refusal:
    """``linear(input, weight, bias)`` contracts the last axis, which must not hold tokens."""
    type_ = context.types["input"]
    if has_stream(type_.axes[-1]) or has_batch(type_.axes[-1]):
        return Refusal("it mixes tokens by a weight for each position")
    kind = type_ if context.call.get("bias") is None else as_intensive(type_)
    channel: tuple[Axis, ...] = ()
    if len(context.shape) == type_.rank:
        channel = (_born(context, context.shape[-1]),)
    result = TensorType((*kind.axes[:-1], *channel))
    return one(result, operands={"input": kind})


def packed_linear(context: Context) -> Lifted | Refusal:
    """``_int_mm`` and others: rows ``[M, K]``, or their scales ``[M, 1]``, and a packed weight."""
    rows = context.types["self"]
    operands = {}
    for path, type_ in context.types.items():
        if not any(has_stream(axis) or has_batch(axis) for axis in type_.axes):
            continue
        if type_.axes[0] != rows.axes[0] or any(map(has_stream, type_.axes[1:])):
            return Refusal("it mixes tokens by a weight for each position")
        operands[path] = as_intensive(type_)
    kind = as_intensive(rows)
    return one(TensorType((*kind.axes[:-1], _born(context, context.shape[-1]))), operands=operands)


def _born(context: Context, size: int) -> Axis:
    return (Atom(size, Origin("channel", context.call.node.name)),)


def embedding(context: Context) -> Lifted | Refusal:
    """``embedding(weight, indices)`` looks up a row for each index."""
    type_ = context.types["indices"]
    return one(TensorType((*type_.axes, _born(context, context.shape[-1]))))


def trailing_norm(context: Context) -> Lifted | Refusal:
    """``layer_norm`` and ``rms_norm``: statistics over the last axes, which hold no tokens."""
    type_ = context.types["input"]
    axes = tuple(range(type_.rank - len(context.call["normalized_shape"]), type_.rank))
    if any(has_stream(type_.axes[i]) for i in axes):
        return _mixed(type_, axes)
    if mixes_images(type_, axes):
        return Refusal("its statistics run over images")
    kind = as_intensive(type_)
    return one(kind, operands={"input": kind})


def channel_norm(context: Context) -> Lifted | Refusal:
    """``batch_norm`` in evaluation: a scale and a shift for each channel of axis 1."""
    type_ = context.types["input"]
    axes = tuple(i for i in range(type_.rank) if i != 1)
    if context.call.get("training") and merged_along(type_, axes):
        return Refusal("its statistics run over tokens")
    if has_stream(type_.axes[1]):
        return _mixed(type_, (1,))
    kind = as_intensive(type_)
    name = context.call.node.name
    statistics = (
        TensorType(tuple((Atom(n, Origin("channel", name, (i,))),) for i, n in enumerate(shape)))
        for shape in context.shapes[1:]
    )
    return Lifted((kind, *statistics), operands={"input": kind})


def group_norm(context: Context) -> Lifted | Refusal:
    """``group_norm``: statistics over channels and all that follows them."""
    type_ = context.types["input"]
    return _mixed(type_, tuple(range(1, type_.rank)))


def _mixed(type_: TensorType, axes: tuple[int, ...]) -> Lifted | Refusal:
    if merged_along(type_, axes):
        return Refusal("its statistics or weights run over tokens")
    if mixes_images(type_, axes):
        return Refusal("its statistics or weights run over images")
    kind = as_intensive(type_)
    return one(kind)


def along_axis(context: Context) -> Lifted | Refusal:
    """Ops within one axis that keep its shape (``glu`` aside), on an axis without tokens."""
    type_ = context.types["self"]
    dim = context.dim(context.call["dim"], type_.rank)
    if has_stream(type_.axes[dim]) or has_batch(type_.axes[dim]):
        return Refusal("it mixes tokens")
    kind = as_intensive(type_)
    axes = list(kind.axes)
    if context.shape[dim] != extent(axes[dim]):
        axes[dim] = _born(context, context.shape[dim])
    return one(TensorType(tuple(axes)), operands={"self": kind})
