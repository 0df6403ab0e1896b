"""Ops that mix tokens and know that a merged token stands for several: softmax, reductions."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    TensorType,
    extensive,
    extent,
    has_batch,
    has_stream,
    is_extensive,
    leads,
    token_factor,
)
from tome_fx.graph.calls import unbind
from tome_fx.graph.frames import mixes_images
from tome_fx.graph.grids import grid_axis
from tome_fx.rules.base import (
    Builder,
    Context,
    Lifted,
    Operands,
    Refusal,
    as_intensive,
    merged_along,
    one,
)
from tome_fx.rules.local import pointwise

aten = torch.ops.aten
_SUMS = ("aten.sum", "aten.mean")
_SPREAD = ("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
_SCALED = ("aten.logsumexp", "aten.norm", "aten.linalg_norm", "aten.linalg_vector_norm")
_EXTREMES = ("aten.amax", "aten.amin", "aten.any", "aten.all", "aten.max", "aten.min")


def softmax(context: Context) -> Lifted | Refusal:
    """Softmax over tokens: ``softmax(logits + log size)``, proportional attention (eq. 1).

    The result holds group totals along that axis: ``s`` equal logits have ``s`` equal shares. The
    logarithm of a share is that of a member's.
    """
    type_ = as_intensive(context.types["self"])
    dim = context.dim(context.call["dim"], type_.rank)
    axis = type_.axes[dim]
    if mixes_images(type_, (dim,)):
        return Refusal("it mixes images")
    logarithm = context.call.name == "aten.log_softmax"
    kind = axis if logarithm else extensive(axis)
    axes = (*type_.axes[:dim], kind, *type_.axes[dim + 1 :])
    demanded = {"self": type_}
    if not merged_along(type_, (dim,)):
        return one(TensorType(axes), operands=demanded)
    if token_factor(axis) is None or grid_axis(axis):
        return Refusal("its tokens share an axis with others, or are spread over several")

    def build(builder: Builder, operands: Operands) -> Any:
        logits, size = operands["self"], builder.key_size_along(type_, dim)
        if logarithm and size is not None:
            if operands["dtype"] is not None:
                logits = builder.call(aten.to.dtype, logits, operands["dtype"])
            weighed = builder.call(ops.add_log_size, logits, size)
            total = builder.call(aten.logsumexp.default, weighed, [dim], True)
            return builder.call(aten.sub.Tensor, logits, total)
        if size is not None:
            logits = builder.call(ops.add_log_size, logits, size)
        extra = {k: v for k, v in operands.items() if k in ("dtype", "half_to_float")}
        return builder.call(context.call.op, logits, dim, *extra.values())

    return one(TensorType(axes), operands=demanded, build=build)


def reduction(context: Context) -> Lifted | Refusal:
    """``sum``, ``mean``, ``amax``, ... over any axes."""
    if "other" in context.call.arguments:
        return pointwise(context)
    type_ = context.types["self"]
    name, dims = context.call.name, _dims(context, type_.rank)
    if any(has_batch(type_.axes[d]) for d in dims) and not _of_all(name, type_, dims):
        return Refusal("it reduces over images")
    over = [d for d in dims if has_stream(type_.axes[d]) and leads(type_.axes[d])]
    if name in _SPREAD and merged_along(type_, tuple(over)):
        return _spread(context, as_intensive(type_), dims, over)
    if name in _SCALED and merged_along(type_, tuple(over)):
        return _scaled(context, as_intensive(type_), dims, over)
    if name not in _SUMS + _EXTREMES and merged_along(type_, tuple(over)):
        return Refusal("its value over tokens is not known")
    if len(context.shapes) > 1 and merged_along(type_, tuple(over)) and index_used(context):
        return Refusal("it returns positions of tokens")
    kind = _reduced_kind(name, type_, dims)
    keepdim = bool(context.call.get("keepdim", False))
    if name in _SUMS and merged_along(type_, tuple(over)):
        return weighted(kind, dims, over, keepdim, name == "aten.mean")
    result = TensorType(reduced(kind.axes, dims, keepdim))
    return Lifted(tuple(result for _ in context.shapes), operands={"self": kind})


def _of_all(name: str, type_: TensorType, dims: list[int]) -> bool:
    """Is it the largest or the smallest of all images and all tokens, as a scale of a tensor is?

    Which of them is at which place, and how many there are of each, is nothing to that.
    """
    left = [axis for d, axis in enumerate(type_.axes) if d not in dims]
    return name in _EXTREMES and not any(has_batch(a) or has_stream(a) for a in left)


def _scaled(
    context: Context, type_: TensorType, dims: list[int], over: list[int]
) -> Lifted | Refusal:
    """``s`` equal members in a norm or a ``logsumexp``: as one that is larger."""
    call = context.call
    order = call.get("ord", call.get("p", 2))
    order = 2 if order is None else order
    matrix = call.name == "aten.linalg_norm" and len(dims) > 1
    if len(over) != 1 or matrix or not isinstance(order, (int, float)) or order <= 0:
        return Refusal("its value over tokens is not known")

    def build(builder: Builder, operands: Operands) -> Any:
        size = builder.size_along(type_, over[0])
        value = operands["self"]
        if size is not None and call.name == "aten.logsumexp":
            value = builder.call(ops.add_log_size, value, size)
        elif size is not None and not math.isinf(order):
            root = builder.call(aten.pow.Tensor_Scalar, size, 1 / order)
            value = builder.call(ops.scale_by_size, value, root)
        args, kwargs = unbind(call, {**operands, "self": value})
        return builder.call(call.op, *args, **kwargs)

    axes = reduced(type_.axes, dims, bool(call.get("keepdim", False)))
    return one(TensorType(axes), operands={"self": type_}, build=build)


def _spread(
    context: Context, type_: TensorType, dims: list[int], over: list[int]
) -> Lifted | Refusal:
    """A variance: squares of ``s`` equal members, from a mean that counts each."""
    if len(over) != 1 or token_factor(type_.axes[over[0]]) is None:
        return Refusal("its tokens share an axis with others")
    call = context.call
    keepdim, several = bool(call.get("keepdim", False)), call.name.endswith("_mean")
    number = math.prod(extent(type_.axes[d]) for d in dims)
    # ``unbiased`` is an older spelling of a correction by one, and the default of both.
    given = call.get("correction")
    correction = float(call.get("unbiased", True)) if given is None else given

    def build(builder: Builder, operands: Operands) -> Any:
        size = builder.size_along(type_, over[0])
        arguments = (operands["self"], size, sorted(dims), keepdim, number, correction)
        root = call.name.startswith("aten.std")
        both = builder.call(ops.weighted_variance, *arguments, root)
        return both if several else builder.call(operator.getitem, both, 0)

    result = TensorType(reduced(type_.axes, dims, keepdim))
    return Lifted(tuple(result for _ in context.shapes), operands={"self": type_}, build=build)


def _dims(context: Context, rank: int) -> list[int]:
    dims = context.call.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [d % rank for d in ([dims] if isinstance(dims, int) else dims)] if rank else []


def index_used(context: Context) -> bool:
    """Does anything read the second output, the positions?"""
    return any(1 in user.args for user in context.call.node.users)


def _reduced_kind(name: str, type_: TensorType, dims: list[int]) -> TensorType:
    """A sum keeps the totals of the axes that stay; anything else takes member values."""
    return type_ if name in _SUMS else as_intensive(type_)


def reduced(axes: tuple[Axis, ...], dims: list[int], keepdim: bool) -> tuple[Axis, ...]:
    rows = [() if i in dims else axis for i, axis in enumerate(axes)]
    return tuple(rows if keepdim else [axis for i, axis in enumerate(rows) if i not in dims])


def weighted(
    type_: TensorType, dims: list[int], over: list[int], keepdim: bool, mean: bool
) -> Lifted | Refusal:
    """``sum(size * x)`` and, for a mean, divided by the number of tokens of the original."""
    if any(token_factor(type_.axes[d]) is None for d in over):
        return Refusal("its tokens share an axis with others")
    # Totals need no size. One axis of members is weighed here, what is left is asked for as totals.
    inner = [d for d in over if not is_extensive(type_.axes[d])]
    wanted = TensorType(
        tuple(extensive(a) if i in inner[1:] else a for i, a in enumerate(type_.axes))
    )
    divisor = math.prod(extent(type_.axes[d]) for d in dims) if mean else 1
    result = TensorType(reduced(type_.axes, dims, keepdim))

    def build(builder: Builder, operands: Operands) -> Any:
        size = builder.size_along(wanted, inner[0]) if inner else None
        arguments = (operands["self"], size, sorted(dims), keepdim, divisor)
        dtype = operands.get("dtype")
        return builder.call(ops.weighted_sum, *arguments, *([dtype] if dtype is not None else []))

    return one(result, operands={"self": wanted}, build=build)


def cumulative(context: Context) -> Lifted | Refusal:
    """``cumsum`` and its kin: order along tokens matters, so they never run merged."""
    type_ = as_intensive(context.types["self"])
    dim = context.dim(context.call["dim"], type_.rank)
    if merged_along(type_, (dim,)):
        return Refusal("it depends on the order of the tokens")
    if mixes_images(type_, (dim,)):
        return Refusal("it depends on the order of the images")
    return one(type_, operands={"self": type_}, tells_apart=has_stream(type_.axes[dim]))
