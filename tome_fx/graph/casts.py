"""Casts that change nothing where a model was captured, and do elsewhere.

    y = to(x, float32)    ->    y = _to_copy(x, dtype=float32)

``y.float()`` of a model in float32 is ``y`` itself. Of the same model in float64, or under
autocast, it is not, and what writes a program anew leaves it out. It keeps copies. Casts to what
another tensor is, and moves to its device, are no such thing: they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import writes
from tome_fx.graph.idle import is_idle
from tome_fx.graph.inplace import is_fresh

aten = torch.ops.aten


def copy_casts(graph: Graph) -> None:
    """Casts to the dtype that a value has, as copies, where no write tells one from the value."""
    held = held_in(graph)
    goals = (n for node in graph.nodes if writes(node) for n in node.all_input_nodes)
    written = set[Node]().union(*map(held.__getitem__, goals))
    for node in list(graph.nodes):
        if node.target is not aten.to.dtype or not is_idle(node):
            continue
        source = node.args[0]
        if not held[source] & written or not _is_read_beside(node, source, held):
            node.target, node.args = aten._to_copy.default, (source,)
            node.kwargs = {"dtype": node.meta["val"].dtype}


def held_in(graph: Graph) -> Mapping[Node, frozenset[Node]]:
    """The values that share memory with each, of those that it is made of, and it itself."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    held: dict[Node, frozenset[Node]] = {}
    for node in graph.nodes:
        given = [] if is_fresh(node, order) else [held[n] for n in node.all_input_nodes]
        held[node] = frozenset({node}).union(*given)
    return held


def _is_read_beside(node: Node, source: Node, held: Mapping[Node, frozenset[Node]]) -> bool:
    """Does anything behind ``node`` read the memory of its source, but through it?

    Whose memory is an input's or a buffer's may be read by anyone.
    """
    if any(other.op in ("placeholder", "get_attr") for other in held[source]):
        return True
    order = {other: place for place, other in enumerate(held)}
    beside = [other for other in held if held[other] & held[source] and node not in held[other]]
    return any(order[user] > order[node] for other in beside for user in other.users)
