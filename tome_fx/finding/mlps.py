"""The MLP of each block: the linears behind its site, or beside its attention."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.fx import Node

from tome_fx.finding.joins import Joins
from tome_fx.graph.calls import bind
from tome_fx.graph.cones import made_of_inputs
from tome_fx.graph.convolutions import CONVOLUTIONS, sees_one_place
from tome_fx.graph.packed import PACKED
from tome_fx.graph.provenance import common_path
from tome_fx.program import Core, Mlp

# With a weight they are linears that are written out, as by code that unpacks a quantised weight.
_PRODUCTS = ("aten.mm", "aten.matmul", "aten.addmm")


@dataclass(frozen=True)
class Mlps:
    """Where the MLPs of a graph are.

    Attributes:
        anchors: its attention, of whatever kind, which no MLP has inside.
    """

    joins: Joins
    anchors: tuple[Node, ...]

    @cached_property
    def linears(self) -> tuple[Node, ...]:
        """All linears, in order."""
        graph = self.joins.graph
        made = made_of_inputs(graph)
        return tuple(node for node in graph.nodes if _is_linear(node, made))

    def of(
        self, site: Node, residual: Node, cores: list[Core], following: Node | None
    ) -> Mlp | None:
        """The linears between two residual adds from a site on, or beside the core in its block."""
        cones, starts = self.joins.cones, [site]
        last = cones.order[following] if following is not None else len(cones.order)
        for node in self.joins.weighings:
            if not cones.order[site] < cones.order[node] < last:
                continue
            if cones.depends(node, site) and self.joins.joined(node, cores[0].stream):
                for start in reversed(starts):  # a cross-attention may stand between
                    found = self._between(start, node)
                    if len(found) >= 2:
                        return Mlp(tuple(found), node, common_path(found))
                starts.append(node)
        return self._beside(site, residual)

    def _between(self, start: Node, end: Node) -> list[Node]:
        """The linears on the ways from one node to another, with no attention there."""
        order, depends = self.joins.cones.order, self.joins.cones.depends
        avoid = [n for n in self.anchors if order[start] < order[n] <= order[end]]
        inside = [n for n in avoid if depends(end, n)]
        return [
            node
            for node in self.linears
            if depends(node, start)
            and depends(end, node)
            and not any(depends(node, n) for n in avoid)
            and not any(depends(n, node) for n in inside)
        ]

    def _beside(self, site: Node, residual: Node) -> Mlp | None:
        """A branch from the same residual to the same row of adds that passes by the attention."""
        depends = self.joins.cones.depends
        aside = [n for n in self.anchors if depends(n, residual) and depends(site, n)]
        found = [
            node
            for node in self.linears
            if depends(node, residual)
            and depends(site, node)
            and not any(depends(node, n) or depends(n, node) for n in aside)
        ]
        return Mlp(tuple(found), site, common_path(found)) if len(found) >= 2 else None


def _is_linear(node: Node, made: Set[Node]) -> bool:
    """A linear, a convolution of single places, or a product by what no input has a part in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    call = bind(node)
    if call.name in CONVOLUTIONS:
        return call["groups"] == 1 and sees_one_place(call)
    if call.name in _PRODUCTS:
        rows, weight = list(node.args)[-2:]
        return rows in made and weight not in made
    return call.name in ("aten.linear", *PACKED)
