"""Attend: each fused attention with sizes in the form that is fastest for it.

    bias = key_bias(q, size)
    y = scaled_dot_product_attention(q, k, v, bias)   ->   y = channel_attention(q, k, v, size)

The forms are equal (``ops.attention``); which one is taken is not decided here. Attention with a
mask of its own keeps the mask, which then holds ``log size`` too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx import kernels, ops
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import tensor_value

# fp16 reaches 65504: log(16384) divided by a smaller scale than this would come near.
_SMALLEST_SCALE = 2.0**-9


@dataclass(frozen=True)
class Shapes:
    """What the speed of an attention depends on, but for the number of images.

    Attributes:
        device: its type and index.
        dtype: of queries, keys and values.
        heads: of the queries.
        key_heads: fewer than ``heads`` where keys are shared by groups.
        queries, keys: how many tokens.
        width, value_width: channels of a head.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    value_width: int


# The fastest of some forms for some shapes.
Choose = Callable[[Shapes, tuple[str, ...]], str]


def attend(graph: Graph, choose: Choose) -> Mapping[str, int]:
    """Edit ``graph``, whose nodes have their values, in place; how many sites took which form."""
    count: Counter[str] = Counter()
    for node in list(graph.nodes):
        size = _size(node)
        if size is None:
            continue
        shapes = _shapes(node, size)
        form = choose(shapes, _legal(node, shapes)) if shapes is not None else "mask"
        count[form] += 1
        if form != "mask":
            call = bind(node)
            keywords = {k: call[k] for k in ("dropout_p", "enable_gqa") if call.get(k)}
            keywords |= {"scale": call["scale"]} if call.get("scale") is not None else {}
            node.target = ops.FORMS[form]
            node.args, node.kwargs = (call["query"], call["key"], call["value"], size), keywords
    graph.eliminate_dead_code()
    return count


def _size(node: Node) -> Node | None:
    """The sizes of a fused attention whose mask is ``log size`` and nothing else."""
    if node.target is not torch.ops.aten.scaled_dot_product_attention.default:
        return None
    bias = bind(node)["attn_mask"]
    if not isinstance(bias, Node) or bias.target is not ops.key_bias or len(bias.args) != 2:
        return None
    size = bias.args[1]
    return size if isinstance(size, Node) else None


def _shapes(node: Node, size: Node) -> Shapes | None:
    """The shapes of ``node``; None where they are not those of ``[B, H, N, d]`` throughout."""
    call = bind(node)
    query, key, value = (tensor_value(call[name]) for name in ("query", "key", "value"))
    sizes = tensor_value(size)
    if query is None or key is None or value is None or sizes is None:
        return None
    plain = len({x.dtype for x in (query, key, value)}) == 1 and query.dim() == 4
    if not plain or not key.dim() == value.dim() == sizes.dim() == 4 or sizes.shape[1:3] != (1, 1):
        return None
    if key.shape[:3] != value.shape[:3] or sizes.shape[0] not in (1, key.shape[0]):
        return None
    if query.shape[0] != key.shape[0]:
        return None
    return Shapes(
        query.device, query.dtype, query.shape[1], key.shape[1], query.shape[2], key.shape[2],
        query.shape[3], value.shape[3],
    )  # fmt: skip


def _legal(node: Node, shapes: Shapes) -> tuple[str, ...]:
    """The forms that are equal for this call."""
    call = bind(node)
    scale = shapes.width**-0.5 if call.get("scale") is None else call["scale"]
    forms = ["mask"]
    if isinstance(scale, (int, float)) and abs(scale) >= _SMALLEST_SCALE:
        forms.append("channel")
    if not call.get("dropout_p"):
        forms += ["values", "flex"]
        width, shared = max(shapes.width, shapes.value_width), shapes.heads % shapes.key_heads == 0
        if shared and kernels.has_attention(shapes.device, shapes.dtype, width):
            forms.append("kernel")
        if not call.get("enable_gqa"):
            forms.append("plain")
    return tuple(forms)
