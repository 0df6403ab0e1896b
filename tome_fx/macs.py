"""Multiply-accumulates of a graph, from the shapes of its nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.utils.flop_counter import FlopCounterMode

from tome_fx import ops
from tome_fx.graph.calls import Call, bind, tensor_operands
from tome_fx.graph.extents import Extents, tensor_value
from tome_fx.graph.leaves import Leaf
from tome_fx.graph.packed import PACKED
from tome_fx.own_matching import OwnMatching

_Count = Callable[[Call, Extents], int]


def macs_of(graph: Graph, sizes: Extents, batch: int) -> dict[Node, int]:
    """MACs per image of each node of ``graph`` that has any, at ``batch`` images.

    Nodes need their value in ``meta``; ``sizes`` reads its shape.
    Counted are linear, matrix products, convolutions, attention and the matching of a merge, as in
    ``torch.utils.flop_counter`` (which counts two FLOPs for a MAC).
    """
    found = {}
    for node in graph.nodes:
        leaf = node.target if isinstance(node.target, Leaf) else None
        whole = leaf.macs * batch if leaf else _macs(node, sizes)
        if whole:
            found[node] = whole // batch
    return found


def _macs(node: Node, extents: Extents) -> int:
    if node.target is ops.similarity:
        metric = _shape(node.args[0], extents)
        return math.prod(_shape(node, extents)) * metric[-1]
    if isinstance(node.target, OwnMatching):
        return _within(node.target, node.kwargs)
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0
    call = bind(node)
    counter = _COUNTERS.get(call.name)
    return counter(call, extents) if counter else 0


def _within(own: OwnMatching, given: Mapping[str, Any]) -> int:
    """Of a function of the user, which is no list of ops before it runs."""
    values = {k: v.meta["val"] if isinstance(v, Node) else v for k, v in given.items()}
    fake = next(v.fake_mode for v in values.values() if isinstance(v, FakeTensor))
    with fake, FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS) as counter:
        own(**values)
    return int(counter.get_total_flops()) // 2


def _mv_flops(matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return 2 * math.prod(matrix)


# What torch's own counter does not know.
_MORE_FLOPS = {torch.ops.aten.mv: _mv_flops}


def _shape(node: object, extents: Extents) -> tuple[int, ...]:
    value = tensor_value(node) if isinstance(node, Node) else None
    return extents.shape(value) if value is not None else (0,)


def _linear(call: Call, extents: Extents) -> int:
    return math.prod(_shape(call.node, extents)) * _shape(call["input"], extents)[-1]


def _product(call: Call, extents: Extents) -> int:
    left = [node for _, node in tensor_operands(call)][-2]
    return math.prod(_shape(call.node, extents)) * _shape(left, extents)[-1]


def _einsum(call: Call, extents: Extents) -> int:
    """Every letter once: the product of all extents that occur."""
    terms = call["equation"].replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    wide = 1
    for term, (_, node) in zip(terms, tensor_operands(call), strict=True):
        shape = _shape(node, extents)
        named = term.replace("...", "")
        wide = max(wide, math.prod(shape[: len(shape) - len(named)]))
        sizes.update(zip(named, shape[len(shape) - len(named) :], strict=True))
    return wide * math.prod(sizes.values())


def _packed(call: Call, extents: Extents) -> int:
    return math.prod(_shape(call.node, extents)) * _shape(call["self"], extents)[-1]


def _attention(call: Call, extents: Extents) -> int:
    query, value = _shape(call["query"], extents), _shape(call["value"], extents)
    return math.prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


def _convolution(call: Call, extents: Extents) -> int:
    weight = _shape(call["weight"], extents)
    return math.prod(_shape(call.node, extents)) * math.prod(weight[1:])


_COUNTERS: Mapping[str, _Count] = MappingProxyType(
    {
        "aten.linear": _linear,
        "aten.scaled_dot_product_attention": _attention,
        "aten.einsum": _einsum,
        **{f"aten.{n}": _product for n in ("matmul", "bmm", "mm", "mv", "baddbmm", "addmm")},
        **dict.fromkeys(PACKED, _packed),
        **{f"aten.{n}": _convolution for n in ("conv1d", "conv2d", "conv3d", "convolution")},
    }
)
