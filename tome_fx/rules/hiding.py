"""Masks of the model's own that hide some tokens from some others, in front of a softmax.

    softmax(masked_fill(logits, hidden, -inf))

A query sees as much of a group as it sees members: their shares add up. So a group of ``s`` of
which ``h`` are hidden counts as ``s - h`` tokens, and is hidden if all are. Where each token is
hidden from itself alone, that is exact; else a group sees what its representative sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    TensorType,
    extensive,
    extent,
    has_batch,
    is_uniform,
    token_factor,
)
from tome_fx.graph.calls import Call, bind
from tome_fx.graph.grids import grid_axis
from tome_fx.graph.softmaxes import into_product, into_softmax
from tome_fx.ops.padding import HIDDEN
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
from tome_fx.rules.local import demands, pointwise, thin

_FULL = ("aten.full", "aten.full_like", "aten.new_full", "aten.scalar_tensor")


@dataclass(frozen=True)
class Fill:
    """Logits with a number where a mask hides keys: arguments by name, and the mask's sense."""

    logits: str
    mask: str
    value: str
    hides: bool


def fill(context: Context) -> Lifted | Refusal:
    """``masked_fill`` and ``where``: pointwise, but for what hides some members of a group."""
    plain, found = pointwise(context), fill_of(context.call)
    if isinstance(plain, Refusal) or found is None or not into_softmax(context.call.node):
        return plain
    result = as_intensive(plain.results[0])
    wanted = counting_type(context.types, found.mask, result)
    if wanted is None:
        return plain

    def build(builder: Builder, operands: Operands) -> Any:
        last = result.rank - 1
        size, weighs = (f(result, last) for f in (builder.size_along, builder.key_size_along))
        logits, counted = operands[found.logits], operands[found.mask]
        arguments = (logits, counted, size, operands[found.value], found.hides)
        return builder.call(ops.hide_members, *arguments, weighs is not None)

    kept = {found.logits: as_intensive(plain.operands[found.logits]), found.mask: wanted}
    return one(result, operands={**plain.operands, **kept}, build=build)


def counting_type(
    types: Mapping[str, TensorType], mask: str, logits: TensorType
) -> TensorType | None:
    """The type of a mask that counts members of each group of keys; None if it cannot tell them.

    It is a table that has a value of its own for each key, and the keys have merged.
    """
    table, last = types[mask], logits.rank - 1
    if not merged_along(logits, (last,)) or not table.rank:
        return None
    keys, own = logits.axes[last], table.axes[-1]
    plain = not table.streams and not any(map(has_batch, table.axes))
    if not plain or is_uniform(own) or extent(own) != extent(keys):
        return None
    if token_factor(keys) is None or len(keys) != 1 or grid_axis(keys):
        return None
    goal = TensorType((*logits.axes[:last], extensive(keys)))
    return demands({mask: thin(table, goal)}, goal, frozenset({mask}))[mask]


def fill_of(call: Call) -> Fill | None:
    """How a call hides keys by a truth; None if it does not."""
    if call.name == "aten.masked_fill":
        return Fill("self", "mask", "value", True) if _hides(call["value"]) else None
    if call.name != "aten.where" or not {"self", "other"} <= set(call.arguments):
        return None
    for logits, value, hides in (("other", "self", True), ("self", "other", False)):
        if isinstance(call[logits], Node) and _hides(call[value]):
            return Fill(logits, "condition", value, hides)
    return None


def is_counted(mask: Node) -> bool:
    """Is a mask read by calls alone that count how many members of a group it hides?"""
    return all(_counts(bind(user), mask) for user in mask.users)


def _counts(call: Call, mask: Node) -> bool:
    if call.name == "aten.scaled_dot_product_attention":
        return call["attn_mask"] is mask and mask.meta["val"].dtype is torch.bool
    if call.name == "aten.mul":  # weights that no softmax made
        return into_product(call.node)
    found = fill_of(call)
    return found is not None and call[found.mask] is mask and into_softmax(call.node)


def _hides(value: Any) -> bool:
    """Is it a number that a softmax makes nothing of?"""
    if isinstance(value, Node):
        if not isinstance(value.target, torch._ops.OpOverload):
            return False
        made = bind(value)
        value = made.get("fill_value", made.get("s")) if made.name in _FULL else None
    return isinstance(value, (int, float)) and value < HIDDEN
