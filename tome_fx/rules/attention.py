"""``scaled_dot_product_attention`` whole: the sizes become an additive mask over the keys."""

from __future__ import annotations

from typing import Any

import torch

from tome_fx import ops
from tome_fx.graph.axes import (
    Axis,
    TensorType,
    extent,
    has_batch,
    has_stream,
    intensive,
    is_merged,
    is_merged_axis,
    streams_of_axis,
    token_factor,
)
from tome_fx.graph.frames import keeps_frames, mixes_images
from tome_fx.graph.unify import broadcast, unify, unify_all
from tome_fx.rules.base import Builder, Context, Lifted, Operands, Refusal, as_intensive, one
from tome_fx.rules.channels import between_channels
from tome_fx.rules.hiding import counting_type
from tome_fx.rules.local import demands, thin

aten = torch.ops.aten


def attention(context: Context) -> Lifted | Refusal:
    """``[..., N, d] x [..., S, d] x [..., S, e] -> [..., N, e]`` with ``log size`` on the keys.

    A boolean mask becomes an additive one where sizes join it. ``scale``, ``dropout_p`` and
    ``enable_gqa`` stay as they are.
    """
    types = {name: as_intensive(type_) for name, type_ in context.types.items()}
    query, key, value = types["query"], types["key"], types["value"]
    lead = _lead(query, key, value)
    if lead is None:
        return Refusal("its operands hold different images or heads")
    if has_stream(query.axes[-1]) or has_stream(key.axes[-1]):
        return between_channels(context, types, lead)
    return _among_tokens(context, types, lead)


def _among_tokens(
    context: Context, types: dict[str, TensorType], lead: tuple[Axis, ...]
) -> Lifted | Refusal:
    """Member values with these ``types`` and leading axes attend to each other."""
    call, (query, key, value) = context.call, (types[n] for n in ("query", "key", "value"))
    if has_stream(value.axes[-1]) or any(has_batch(t.axes[-1]) for t in (query, key, value)):
        return Refusal("its channels hold tokens")
    each = keeps_frames(TensorType((*lead, query.axes[-2], key.axes[-2])))
    if not each or any(mixes_images(t, (-2,)) for t in (query, key, value)):
        return Refusal("its keys are images, or those of other frames too")
    keys = unify(key.axes[-2], value.axes[-2])
    if keys is None:
        return Refusal("its keys and values are different tokens")
    if call.get("is_causal") and any(is_merged(t) for t in types.values()):
        return Refusal("causal attention depends on the order of the tokens")
    result = TensorType((*lead, query.axes[-2], value.axes[-1]))
    logits = TensorType((*lead, query.axes[-2], intensive(keys)))
    wanted = _keys_at_one_level(query, key, value, lead, keys)
    if wanted is None:
        return Refusal("its keys and values are different tokens")
    counts: TensorType | None = None
    if "attn_mask" in types:
        if broadcast([types["attn_mask"], logits]) is None:
            return Refusal("its mask is about different tokens")
        if context.dtype("attn_mask") == torch.bool:
            counts = counting_type(types, "attn_mask", logits)
        mask = thin(types["attn_mask"], logits)
        wanted.update(
            demands({"attn_mask": mask}, logits) if counts is None else {"attn_mask": counts}
        )
    if not is_merged_axis(keys):
        return one(result, operands=wanted)
    if token_factor(keys) is None:
        return Refusal("its keys are tokens for each of other tokens")

    def build(builder: Builder, operands: Operands) -> Any:
        return _build(context, builder, dict(operands), logits, counts is not None)

    return one(result, operands=wanted, build=build)


def _keys_at_one_level(
    query: TensorType, key: TensorType, value: TensorType, lead: tuple[Axis, ...], keys: Axis
) -> dict[str, TensorType] | None:
    """The operands with keys or values that are a table brought to the level of the others."""
    wanted = {"query": query, "key": key, "value": value}
    level = [stream.level for stream in streams_of_axis(keys)]
    for name, type_ in (("key", key), ("value", value)):
        if type_.rank == query.rank:
            wanted.update(demands({name: type_}, TensorType((*lead, keys, type_.axes[-1]))))
        if [stream.level for stream in streams_of_axis(wanted[name].axes[-2])] != level:
            return None
    return wanted


def _lead(query: TensorType, key: TensorType, value: TensorType) -> tuple[Axis, ...] | None:
    """The leading axes of the result: batch, and the query's heads (grouped keys have fewer)."""
    if not query.rank == key.rank == value.rank:
        shared = broadcast([TensorType(t.axes[:-2]) for t in (query, key, value)])
        return None if shared is None else shared.axes
    axes: list[Axis] = []
    for place in range(query.rank - 2):
        here = [t.axes[place] for t in (query, key, value)]
        batch = [axis for axis in here if has_batch(axis)]
        # Of one image, a single head may stand there.
        if batch and all(extent(axis) == 1 for axis in batch):
            batch = [axis for axis in here if extent(axis) > 1] or batch
        axis = unify_all(batch) if batch else here[0]
        if axis is None:
            return None
        axes.append(axis)
    return tuple(axes)


def _build(
    context: Context, builder: Builder, operands: dict[str, Any], logits: TensorType, counted: bool
) -> Any:
    call = context.call
    size = builder.key_size_along(logits, logits.rank - 1)
    mask = operands.get("attn_mask")
    if counted:
        mask = builder.call(ops.seen_bias, operands["query"], mask, size is not None)
    elif size is not None:
        query = operands["query"]
        arguments = (query, size) if mask is None else (query, size, mask)
        mask = builder.call(ops.key_bias, *arguments)
    given = {"scale": operands.get("scale"), "enable_gqa": operands.get("enable_gqa") or None}
    keywords = {name: value for name, value in given.items() if value is not None}
    positional = [operands["query"], operands["key"], operands["value"], mask]
    if operands.get("dropout_p"):
        positional.append(operands["dropout_p"])
    return builder.call(call.op, *positional, **keywords)
