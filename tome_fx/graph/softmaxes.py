"""Whether a value is logits: on its way into a softmax."""

from __future__ import annotations

import torch
from torch.fx import Node

from tome_fx.graph.calls import bind

SOFTMAXES = ("aten.softmax", "aten._softmax")
# What a softmax does not see, or what it adds to all shares of a group alike.
_BEFORE = ("aten.add", "aten.masked_fill", "aten.to", "aten._to_copy", "aten.contiguous",
           "aten.clone")  # fmt: skip


def into_softmax(node: Node) -> bool:
    """Does a value go into one softmax over its last axis, and nowhere else?"""
    rank = node.meta["val"].dim()
    while len(node.users) == 1:
        (user,) = node.users
        if not isinstance(user.target, torch._ops.OpOverload):
            return False
        call = bind(user)
        if call.name in SOFTMAXES:
            return bool(call["self"] is node and call["dim"] % rank == rank - 1)
        if call.name not in _BEFORE or node not in (call["self"], call.get("other")):
            return False
        node = user
    return False
