"""Recognize: attention that a model writes out becomes one call where sizes join it.

    logits = matmul(mul(q, 0.5), kt)
    logits = add(logits, mask)
    logits = add_log_size(logits, size) ->   y = attention(mul(q, 0.5), kt, v, size, mask)
    p = softmax(logits, -1)
    y = matmul(p, v)

The call is fused attention under a compiler and stays written otherwise. Compilers know the
attention that models write and call a fused kernel for it; with ``log size`` inside they no longer
do, and what was merged would run slower than what was not. Attention without sizes, before the
first merge, is left as it is: a compiler sees it as before. Left alone too is what somebody else
reads (maps of attention), dropout on the weights, and a factor that is no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import tensor_value

aten = torch.ops.aten
_PRODUCTS = ("aten.matmul", "aten.bmm")
_FACTORS = ("aten.mul", "aten.div")
_SAFE = ("aten._safe_softmax",)
_SOFTMAXES = ("aten.softmax", "aten.special_softmax", "aten._softmax", *_SAFE)


@dataclass(frozen=True)
class Written:
    """``softmax(scale query keys^T + mask + log size) value``, as nodes."""

    query: Node
    keys: Node
    value: Node
    size: Node
    mask: Node | None
    scale: float


def recognize(graph: Graph) -> int:
    """Edit ``graph``, whose nodes have their values, in place; how many attentions were fused."""
    found = [(node, written) for node in graph.nodes if (written := _written(node)) is not None]
    for node, own in found:
        node.target = ops.attention
        node.args = (own.query, own.keys, own.value, own.size)
        node.kwargs = {"mask": own.mask, "scale": own.scale}
    if found:
        graph.eliminate_dead_code()
    return len(found)


def _written(node: Node) -> Written | None:
    """The attention whose last product ``node`` is, or None."""
    if not calls(node, _PRODUCTS):
        return None
    weights, value = node.all_input_nodes[0], node.all_input_nodes[-1]
    softmax = _behind_casts(weights)
    if softmax is None or not _over_last(softmax):
        return None
    sized = softmax.all_input_nodes[0]
    if sized.target is not ops.add_log_size or len(sized.users) != 1:
        return None
    logits, size = sized.all_input_nodes[:2]
    found = _product(logits, size, value)
    # Of a row whose keys are all hidden it makes zeros; without a mask there is none.
    hides = calls(softmax, _SAFE) and found is not None and found.mask is not None
    return None if hides else found


def _product(logits: Node, size: Node, value: Node) -> Written | None:
    """Read ``scale * (query @ keys) + mask`` backwards."""
    (path, scale), mask = _scaled(logits), None
    total = path[-1]
    if scale == 1.0 and calls(total, ("aten.add",)):
        sides = total.all_input_nodes
        inner = [side for side in sides if calls(_scaled(side)[0][-1], _PRODUCTS)]
        if len(sides) != 2 or len(inner) != 1 or bind(total).get("alpha", 1) != 1:
            return None
        (mask,) = (side for side in sides if side is not inner[0])
        behind, scale = _scaled(inner[0])
        path += behind
    product = path[-1]
    if any(len(node.users) != 1 for node in path) or not scale:
        return None
    if not calls(product, _PRODUCTS) or len(product.all_input_nodes) != 2:
        return None
    query, keys = product.all_input_nodes
    found = Written(query, keys, value, size, mask, scale)
    return found if _fits(found, product) else None


def _scaled(node: Node) -> tuple[list[Node], float]:
    """``node`` and what is behind its factors that are numbers, and their product."""
    path, scale = [node], 1.0
    while (factor := _factor(path[-1])) is not None:
        scale *= factor
        path.append(path[-1].all_input_nodes[0])
    return path, scale


def _fits(found: Written, product: Node) -> bool:
    """Does fused attention take these shapes and dtypes?"""
    named = (found.query, found.keys, found.value, found.size, product)
    values = [tensor_value(node) for node in named]
    query, keys, value, size, logits = values
    if query is None or keys is None or value is None or size is None or logits is None:
        return False
    mask = tensor_value(found.mask) if found.mask is not None else query
    same = {x.dtype for x in (query, keys, value, mask) if x is not None}
    rank = query.dim()
    return (
        mask is not None
        and len(same) == 1
        and query.is_floating_point()
        and rank in (3, 4)
        and rank == keys.dim() == value.dim() == size.dim()
        and size.shape[-2] == 1
        and query.shape[:-2] == keys.shape[:-2] == value.shape[:-2]
        and (found.mask is None or _broadcasts(mask.shape, logits.shape))
    )


def _broadcasts(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """May a mask of ``shape`` be added to logits of ``whole`` without making them larger?"""
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(own in (1, size) for own, size in pairs)


def _behind_casts(node: Node) -> Node | None:
    """The softmax that ``node`` is, or is a cast of."""
    while len(node.users) == 1:
        if calls(node, _SOFTMAXES):
            return node
        if not calls(node, ("aten.to", "aten._to_copy", "aten.type_as", "aten.clone")):
            return None
        node = node.all_input_nodes[0]
    return None


def _over_last(softmax: Node) -> bool:
    value = tensor_value(softmax)
    return value is not None and bind(softmax)["dim"] in (-1, value.dim() - 1)


def _factor(node: Node) -> float | None:
    """The number that a node multiplies by, if that is what it does."""
    if not calls(node, _FACTORS):
        return None
    call = bind(node)
    other = call["other"]
    if not isinstance(other, (int, float)) or len(node.all_input_nodes) != 1:
        return None
    if call.get("rounding_mode") is not None or (call.name == "aten.div" and other == 0):
        return None
    return 1.0 / other if call.name == "aten.div" else float(other)
