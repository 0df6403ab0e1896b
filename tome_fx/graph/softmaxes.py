"""Whether a value is logits: on its way into a softmax, or weights: on its way into a product."""

from __future__ import annotations

import torch
from torch.fx import Node

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.packed import PACKED

SOFTMAXES = ("aten.softmax", "aten._softmax", "aten._safe_softmax")
_CASTS = ("aten.to", "aten._to_copy", "aten.contiguous", "aten.clone")
_LARGEST = ("aten.amax", "aten.max")
_FILLS = ("aten.masked_fill", "aten.where")
_PRODUCTS = ("aten.matmul", "aten.bmm", "aten.mm", "aten.einsum", "aten.baddbmm")
# What is homogeneous in positive numbers: of a mean, what the mean of equal members is.
SCALES = ("aten.mul", "aten.div", "aten.neg", "aten.relu", "aten.dropout", *_CASTS)
# Where a walk for masks ends: behind it are tokens.
_TOKENS = (*_PRODUCTS, *PACKED, "aten.linear", "aten.addmm",
           "aten.conv1d", "aten.conv2d", "aten.conv3d")  # fmt: skip


def into_softmax(node: Node) -> bool:
    """Does a value go into one softmax over its last axis, and nowhere else, with nothing hidden?

    Casts may stand between, and what is added to it, but no scale and no further mask.
    """
    rank = node.meta["val"].dim()
    while len(node.users) == 1:
        (user,) = node.users
        if not isinstance(user.target, torch._ops.OpOverload):
            return False
        call = bind(user)
        if call.name in SOFTMAXES:
            return bool(call["self"] is node and call["dim"] % rank == rank - 1)
        value = user.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() != rank:
            return False
        if call.name == "aten.add":
            other = call["other"] if call["self"] is node else call["self"]
            scaled = call["other"] is node and call.get("alpha", 1) != 1
            if scaled or other is node or (isinstance(other, Node) and _is_filled(other)):
                return False
        elif call.name not in _CASTS:
            return False
        node = user
    return False


def leads_to_softmax(node: Node) -> bool:
    """Does a value go into one softmax, by elementwise ops alone? Its largest may be taken off."""
    while True:
        users = [user for user in node.users if not calls(user, _LARGEST)]
        op = users[0].target if len(users) == 1 else None
        if not isinstance(op, torch._ops.OpOverload):
            return False
        (node,) = users
        if calls(node, SOFTMAXES):
            return True
        if torch.Tag.pointwise not in op.tags and not calls(node, _CASTS):
            return False


def into_product(node: Node) -> bool:
    """Does a value go into one product of matrices, by scales alone?"""
    while len(node.users) == 1:
        (user,) = node.users
        if calls(user, _PRODUCTS):
            return True
        if not calls(user, SCALES):
            return False
        node = user
    return False


def _is_filled(node: Node) -> bool:
    """Has a mask a part in a value, this side of the tokens that it is made of?"""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop()
        if calls(here, _FILLS):
            return True
        if not calls(here, _TOKENS):
            before = [n for n in here.all_input_nodes if n not in seen]
            waiting += before
            seen.update(before)
    return False
