"""``scaled_dot_product_attention`` whole: the sizes become an additive mask over the keys."""

from __future__ import annotations

from typing import Any

import torch

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    TensorType,
    has_batch,
    has_stream,
    intensive,
    is_merged,
    streams_of_axis,
)
from tome_fx.graph.unify import broadcast, unify, unify_all
from tome_fx.rules.base import Builder, Context, Lifted, Operands, Refusal, as_intensive, one
from tome_fx.rules.local import demands

aten = torch.ops.aten


def attention(context: Context) -> Lifted | Refusal:
    """``[..., N, d] x [..., S, d] x [..., S, e] -> [..., N, e]`` with ``log size`` on the keys.

    A boolean mask becomes an additive one where sizes join it. ``scale``, ``dropout_p`` and
    ``enable_gqa`` stay as they are.
    """
    call = context.call
    types = {name: as_intensive(type_) for name, type_ in context.types.items()}
    query, key, value = types["query"], types["key"], types["value"]
    if any(has_stream(t.axes[-1]) or has_batch(t.axes[-1]) for t in (query, key, value)):
        return Refusal("its channels hold tokens")
    keys = unify(key.axes[-2], value.axes[-2])
    if keys is None or keys_level(key) != keys_level(value):
        return Refusal("its keys and values are different tokens")
    if call.get("is_causal") and any(is_merged(t) for t in types.values()):
        return Refusal("causal attention depends on the order of the tokens")
    lead = _lead(query, key, value)
    if lead is None:
        return Refusal("its operands hold different images or heads")
    result = TensorType((*lead, query.axes[-2], value.axes[-1]))
    logits = TensorType((*lead, query.axes[-2], intensive(keys)))
    wanted: dict[str, TensorType] = {"query": query, "key": key, "value": value}
    if "attn_mask" in types:
        if broadcast([types["attn_mask"], logits]) is None:
            return Refusal("its mask is about different tokens")
        wanted.update(demands({"attn_mask": types["attn_mask"]}, logits))
    if not any(s.level for s in streams_of_axis(keys)):
        return one(result, operands=wanted)
    if len(keys) != 1:
        return Refusal("its tokens share an axis with something else")

    def build(builder: Builder, operands: Operands) -> Any:
        return _build(context, builder, dict(operands), logits)

    return one(result, operands=wanted, build=build)


def keys_level(type_: TensorType) -> list[int]:
    return [stream.level for stream in streams_of_axis(type_.axes[-2])]


def _lead(query: TensorType, key: TensorType, value: TensorType) -> tuple[Axis, ...] | None:
    """The leading axes of the result: batch, and the query's heads (grouped keys have fewer)."""
    if not query.rank == key.rank == value.rank:
        shared = broadcast([TensorType(t.axes[:-2]) for t in (query, key, value)])
        return None if shared is None else shared.axes
    axes: list[Axis] = []
    for place in range(query.rank - 2):
        here = [t.axes[place] for t in (query, key, value)]
        batch = [axis for axis in here if has_batch(axis)]
        axes.append(batch[0] if batch else here[0])
        if unify_all(batch or [()]) is None:
            return None
    return tuple(axes)


def _build(context: Context, builder: Builder, operands: dict[str, Any], logits: TensorType) -> Any:
    call = context.call
    size = builder.key_size_along(logits, logits.rank - 1)
    mask = operands.get("attn_mask")
    if size is not None:
        query = operands["query"]
        arguments = (query, size) if mask is None else (query, size, mask)
        mask = builder.call(ops.key_bias, *arguments)
    keywords = {k: operands[k] for k in ("scale", "enable_gqa") if operands.get(k)}
    positional = [operands["query"], operands["key"], operands["value"], mask]
    if operands.get("dropout_p"):
        positional.append(operands["dropout_p"])
    return builder.call(call.op, *positional, **keywords)
