"""The MLP of each block: the linears behind its site, or beside its attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from tome_fx.finding.joins import Joins
from tome_fx.graph.calls import bind
from tome_fx.graph.cones import Cones
from tome_fx.graph.convolutions import CONVOLUTIONS, sees_one_place
from tome_fx.graph.provenance import common_path
from tome_fx.program import Core, Mlp


def mlp_of(
    joins: Joins,
    site: Node,
    residual: Node,
    cores: list[Core],
    following: Node | None,
    anchors: Iterable[Node],
) -> Mlp | None:
    """The linears between a site and the next residual add, or beside the core in its block."""
    graph, cones = joins.graph, joins.cones
    last = cones.order[following] if following is not None else len(cones.order)
    later = [n for n in anchors if cones.order[site] < cones.order[n]]
    for node in graph.nodes:
        if not cones.order[site] < cones.order[node] < last:
            continue
        if joins.joined(node, cores[0].stream) and cones.depends(node, site):
            found = _linears(graph, site, node, later, cones)
            if len(found) >= 2:
                return Mlp(tuple(found), node, common_path(found))
    return _parallel_mlp(graph, site, residual, cores, cones)


def _linears(graph: Graph, start: Node, end: Node, avoid: list[Node], cones: Cones) -> list[Node]:
    return [
        node
        for node in graph.nodes
        if _is_linear(node)
        and cones.depends(node, start)
        and cones.depends(end, node)
        and not any(cones.depends(node, other) or (cones.depends(other, node) and
                    cones.depends(end, other)) for other in avoid)
    ]  # fmt: skip


def _is_linear(node: Node) -> bool:
    """A linear, or a convolution of single places."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    call = bind(node)
    if call.name in CONVOLUTIONS:
        return call["groups"] == 1 and sees_one_place(call)
    return call.name == "aten.linear"


def _parallel_mlp(
    graph: Graph, site: Node, residual: Node, cores: list[Core], cones: Cones
) -> Mlp | None:
    """A branch from the same residual to the same row of adds that passes by the attention."""
    aside = [core.node for core in cores]
    found = [
        node
        for node in graph.nodes
        if _is_linear(node)
        and cones.depends(node, residual)
        and cones.depends(site, node)
        and not any(cones.depends(node, core) or cones.depends(core, node) for core in aside)
    ]
    return Mlp(tuple(found), site, common_path(found)) if len(found) >= 2 else None
