"""What each node of a graph depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node


@dataclass(frozen=True)
class Cones:
    """For every node, the set of nodes before it as a bit mask of program order."""

    order: Mapping[Node, int]
    before: Mapping[Node, int]

    def depends(self, node: Node, on: Node) -> bool:
        """Is ``on`` the node itself or before it?"""
        return node is on or bool(self.before[node] >> self.order[on] & 1)


def cones_of(graph: Graph) -> Cones:
    """The cones of all nodes of a graph."""
    order: dict[Node, int] = {}
    before: dict[Node, int] = {}
    for index, node in enumerate(graph.nodes):
        order[node] = index
        mask = 0
        for source in node.all_input_nodes:
            mask |= before[source] | 1 << order[source]
        before[node] = mask
    return Cones(order, before)
