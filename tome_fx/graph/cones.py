"""What each node of a graph depends on."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import calls, writes

_LAYOUT = ("aten.slice", "aten.select", "aten.reshape", "aten.permute", "aten.transpose",
           "aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.contiguous")  # fmt: skip
_LIKE = ("sym_size", "full_like", "ones_like", "zeros_like", "empty_like", "new_full", "new_ones",
         "new_zeros", "new_empty")  # fmt: skip
_CONSTANT = ("aten.zeros_like", "aten.ones_like", "aten.full_like")
_AS = ("view_as", "reshape_as", "expand_as", "type_as")


@dataclass(frozen=True)
class Cones:
    """For every node, the set of nodes before it as a bit mask of program order."""

    order: Mapping[Node, int]
    before: Mapping[Node, int]

    def depends(self, node: Node, on: Node) -> bool:
        """Is ``on`` the node itself or before it?"""
        return node is on or bool(self.before[node] >> self.order[on] & 1)


def cones_of(graph: Graph, cut: Set[Node] = frozenset()) -> Cones:
    """The cones of all nodes of a graph, with nothing before those where it is ``cut``."""
    order: dict[Node, int] = {}
    before: dict[Node, int] = {}
    for index, node in enumerate(graph.nodes):
        order[node] = index
        mask = 0
        for source in () if node in cut else node.all_input_nodes:
            mask |= before[source] | 1 << order[source]
        before[node] = mask
    return Cones(order, before)


def live_nodes(graph: Graph) -> set[Node]:
    """The nodes that have a part in what a program returns or writes; a log has none."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in live or node.op == "output" or writes(node):
            live.update((node, *node.all_input_nodes))
    return live


def made_of_inputs(graph: Graph) -> set[Node]:
    """The nodes whose values, not only their shapes, depend on an input."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(n in found for n in read_values(node)):
            found.add(node)
    return found


def read_values(node: Node) -> list[Node]:
    """The operands that an op reads more of than the shape."""
    if _name(node) in _AS:
        return node.all_input_nodes[:1]
    return node.all_input_nodes[reads_a_shape(node) :]


def reads_a_shape(node: Node) -> bool:
    """Is the shape all that an op reads of its first operand?"""
    return _name(node) in _LIKE


def _name(node: Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")


def laid_out(node: Node) -> Node:
    """What a value was before it was cut or moved about."""
    while calls(node, _LAYOUT):
        node = node.all_input_nodes[0]
    return node


def is_constant(node: Node) -> bool:
    """Is a value one number at all places, made in the shape of another?"""
    return calls(laid_out(node), _CONSTANT)
