"""Embed: a convolution that cuts an image into patches as one matrix product.

    y = conv2d(x, w, b, stride=p)      ->      y = embed_patches(x, w, b)

Kernel and stride are the same, so each pixel belongs to one patch and the patches are rows of a
matrix. It is the same sum in another order. Tensor cores want channels in eights; for an image's
three, libraries of convolutions take kernels that are several times slower than the product is.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import tensor_value
from tome_fx.kernels.choice import HALVES


def embed(graph: Graph) -> int:
    """Edit ``graph``, whose nodes have their values, in place; how many convolutions it took."""
    taken = [node for node in graph.nodes if _cuts(node)]
    for node in taken:
        call = bind(node)
        node.target = ops.embed_patches
        node.args, node.kwargs = (call["input"], call["weight"], call.get("bias")), {}
    return len(taken)


def _cuts(node: Node) -> bool:
    """Is it a convolution of whole patches, of few channels, in half precision?"""
    if node.target is not torch.ops.aten.conv2d.default:
        return False
    call = bind(node)
    x, weight = tensor_value(call["input"]), tensor_value(call["weight"])
    if x is None or weight is None or x.dim() != 4 or x.dtype not in HALVES:
        return False
    kernel = list(weight.shape[2:])
    whole = all(size % step == 0 for size, step in zip(x.shape[2:], kernel, strict=True))
    plain = not any(call["padding"]) and set(call["dilation"]) == {1} and call["groups"] == 1
    return whole and plain and list(call["stride"]) == kernel and weight.shape[1] % 8 != 0
