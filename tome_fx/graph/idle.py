"""Calls that hand on their operand itself, as captured: a cast to the dtype that it has, say.

    with torch.no_grad(): m = x.float().mean()      x.float() is x, which keeps its gradient

Whoever traces takes the value for the last call that returned it, so what comes later reads that.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from tome_fx.graph.calls import bind, calls

_CASTS = ("aten.to", "aten.type_as")
_DROPOUTS = ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout")


def handed_on(node: Node) -> Node:
    """What a value is, before calls that hand it on."""
    while _is_handed_on(node):
        node = node.all_input_nodes[0]
    return node


def _is_handed_on(node: Node) -> bool:
    if calls(node, _DROPOUTS):
        call = bind(node)
        return not call["train"] or not call["p"]
    if calls(node, _CASTS):
        return is_idle(node)
    return calls(node, ("aten.contiguous",)) and _is_dense(node)


def is_idle(node: Node) -> bool:
    """Does a call of ``to`` hand on its operand itself, as captured?"""
    call, after = bind(node), node.meta["val"]
    before = call["self"].meta["val"]
    same = (before.dtype, before.device, before.layout) == (after.dtype, after.device, after.layout)
    return same and not call.get("copy") and call.get("memory_format") is None


def _is_dense(node: Node) -> bool:
    call = bind(node)
    given = call["memory_format"]  # where the call names none, the schema's own number
    order = given if isinstance(given, torch.memory_format) else torch.contiguous_format
    return bool(call["self"].meta["val"].is_contiguous(memory_format=order))
