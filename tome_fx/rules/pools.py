"""Pooling over a whole grid: to a size of one, or by a window as large as what it runs over.

The mean or the maximum over all places. Any other pooling is an op over a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tome_fx.graph.axes import TensorType, count, extent, has_batch, has_stream, leads
from tome_fx.rules.base import Context, Lifted, Refusal, as_intensive, merged_along
from tome_fx.rules.shapes import grid
from tome_fx.rules.tokens import index_used, reduced, weighted


def pool(context: Context) -> Lifted | Refusal:
    """``adaptive_avg_pool``, ``avg_pool`` and their maxima, in one to three dimensions."""
    name, type_ = context.call.name, context.types["self"]
    dims = _whole(context, type_)
    if not dims:
        return grid(context)
    if any(has_batch(type_.axes[d]) for d in dims):
        return Refusal("it reduces over images")
    over = [d for d in dims if has_stream(type_.axes[d]) and leads(type_.axes[d])]
    if "avg" in name and merged_along(type_, tuple(over)):
        return weighted(type_, dims, over, keepdim=True, mean=True)
    if len(context.shapes) > 1 and merged_along(type_, tuple(over)) and index_used(context):
        return Refusal("it returns positions of tokens")
    type_ = as_intensive(type_)
    result = TensorType(reduced(type_.axes, dims, keepdim=True))
    fits = {} if "adaptive" in name else _as_large(type_, dims)
    return Lifted(tuple(result for _ in context.shapes), operands={"self": type_}, arguments=fits)


def _whole(context: Context, type_: TensorType) -> list[int]:
    """The axes that are pooled to one place; none where it is a pooling of another kind."""
    call = context.call
    sizes = _row(call.get("output_size", call.get("kernel_size")))
    if len(sizes) == 1:
        sizes *= int(call.name[-2])  # ``avg_pool2d``
    dims = list(range(type_.rank - len(sizes), type_.rank))
    if "adaptive" in call.name:
        return dims if all(size == 1 for size in sizes) else []
    plain = not any(_row(call.get("padding", 0))) and call.get("divisor_override") is None
    alone = all(step == 1 for step in _row(call.get("dilation", 1)))
    same = plain and alone and sizes == [extent(type_.axes[d]) for d in dims]
    return dims if same and math.prod(context.shape[-len(sizes) :]) == 1 else []


def _row(value: int | Sequence[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _as_large(type_: TensorType, dims: list[int]) -> dict[str, list[int]]:
    """A window over what is left of the places."""
    return {"kernel_size": [count(type_.axes[d]) for d in dims], "stride": [1] * len(dims)}
