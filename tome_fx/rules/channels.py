"""``scaled_dot_product_attention`` between channels: ``[..., C, N]`` three times.

The tokens are what its logits are summed over (cross-covariance attention in one call), so that its
keys hold totals. How the sum is scaled follows from the original's number of tokens.
"""

from __future__ import annotations

from typing import Any

from tome_fx.graph.axes import (
    Axis,
    TensorType,
    batch_axis,
    extensive,
    extent,
    has_batch,
    has_stream,
    is_merged,
    is_merged_axis,
)
from tome_fx.graph.frames import mixes_images
from tome_fx.graph.unify import broadcast, unify
from tome_fx.rules.base import Context, Lifted, Refusal, one
from tome_fx.rules.local import demands, thin


def between_channels(
    context: Context, types: dict[str, TensorType], lead: tuple[Axis, ...]
) -> Lifted | Refusal:
    """The rule, for member values with these ``types`` and leading axes."""
    query, key, value = types["query"], types["key"], types["value"]
    if any(has_stream(t.axes[-2]) or mixes_images(t, (-2,)) for t in (query, key, value)):
        return Refusal("it mixes tokens with channels")
    if any(has_batch(t.axes[-1]) for t in (query, key, value)):
        return Refusal("its channels are images")
    tokens = unify(query.axes[-1], key.axes[-1])
    channels = unify(key.axes[-2], value.axes[-2])
    if tokens is None or channels is None:
        return Refusal("it sums over different tokens")
    if not all(has_stream(t.axes[-1]) and batch_axis(t) is not None for t in (query, key)):
        return Refusal("it mixes tokens by a weight for each position")
    if is_merged_axis(tokens) and len(tokens) != 1:
        return Refusal("its tokens share an axis with something else")
    logits = TensorType((*lead, query.axes[-2], channels))
    totals = TensorType((*key.axes[:-1], extensive(key.axes[-1])))
    wanted = {"query": query, "key": totals, "value": value}
    if "attn_mask" in types:
        mask = thin(types["attn_mask"], logits)
        if broadcast([mask, logits]) is None or is_merged(mask):
            return Refusal("its mask is about tokens")
        wanted.update(demands({"attn_mask": mask}, logits))
    return one(
        TensorType((*lead, query.axes[-2], value.axes[-1])),
        operands=wanted,
        arguments=_scale(context, tokens),
    )


def _scale(context: Context, tokens: Axis) -> dict[str, Any]:
    """The scale that the op takes from the number of tokens by itself."""
    own = context.call.get("scale") is None and is_merged_axis(tokens)
    return {"scale": extent(tokens) ** -0.5} if own else {}
