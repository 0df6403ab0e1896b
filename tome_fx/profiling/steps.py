"""Which step of which layer each node of a rewritten graph belongs to.

    norm -> projections -> attention -> projections -> (residual add) -> matching -> merging
         -> norm -> mlp -> (residual add)

Inserted nodes are known by the function of ``tome_fx.ops`` that they call, the program's own by
what ``locate`` found: the attention core, the linears of the MLP, and what lies between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import bind
from tome_fx.graph.cones import Cones, cones_of
from tome_fx.own_matching import OwnMatching
from tome_fx.program import Core, Findings, Site

PROJECTIONS, ATTENTION, MLP, NORM = "projections", "attention", "mlp", "norm"
MATCHING, MERGING, SIZES, BIAS, UNMERGE = "matching", "merging", "sizes", "bias", "unmerge"
ENDS, OTHER = "ends", "other"
STEPS = (
    PROJECTIONS, ATTENTION, MLP, NORM, MATCHING, MERGING, SIZES, BIAS, UNMERGE, OTHER, ENDS,
)  # fmt: skip
# What is there only because tokens merge.
ADDED = (MATCHING, MERGING, SIZES, BIAS, UNMERGE)
STEM, HEAD = "stem", "head"

_BY_STEP = {
    MATCHING: (ops.head_mean, ops.similarity, ops.match, ops.match_keys, ops.match_metric,
               ops.shown, ops.seen, ops.kinds, ops.patterns, ops.both, ops.in_view,
               ops.keep_apart, ops.padding_last, ops.prefer_alike, ops.stretches, ops.own_plan,
               ops.by_head, ops.features, ops.joined, ops.single, ops.plan_of_pairs),
    MERGING: (ops.merge, ops.merge_norm, ops.merge_sum, ops.take, ops.take_constant,
              ops.total, ops.apart, ops.for_images, ops.place_batch, ops.join_plans,
              ops.join_alike, ops.compose_plans),
    SIZES: (ops.merged_size, ops.along, ops.scale_by_size, ops.divide_by_size, ops.weighted_sum,
            ops.weighted_variance),
    ATTENTION: (ops.attention, ops.level_attention, *ops.FORMS.values()),
    BIAS: (ops.key_bias, ops.add_log_size, ops.hide_members, ops.seen_bias),
    UNMERGE: (ops.unmerge, ops.assignment, ops.compose, ops.identity, ops.join_maps, ops.kept),
    ENDS: (ops.embed_patches,),
    OTHER: (ops.check_input, ops.check_rows, ops.check_whole, ops.check_constant, ops.check_fixed,
            ops.check_mode, ops.size_of),
}  # fmt: skip
OF_FUNCTION: Mapping[Any, str] = MappingProxyType(
    {function: step for step, functions in _BY_STEP.items() for function in functions}
)
# Of these operands only dtype and device are read.
UNREAD: Mapping[Any, int] = MappingProxyType(
    {ops.merged_size: 2, ops.merge_norm: 3, ops.key_bias: 0}
)
_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "native_layer_norm",
          "native_batch_norm", "_native_batch_norm_legit_no_training")  # fmt: skip
_PRODUCTS = ("matmul", "bmm", "baddbmm", "mm", "einsum")
_LAYOUT = ("reshape", "permute", "transpose", "unbind", "select", "slice", "split", "chunk",
           "split_with_sizes", "unsqueeze", "squeeze", "expand", "contiguous", "clone", "cat",
           "flatten", "unflatten", "movedim", "getitem")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A layer (``stem``, ``0``, ``1``, ..., ``head``) and one of STEPS."""

    layer: str
    step: str


def places(graph: Graph, origin: Mapping[Node, Node], captured: Graph, findings: Findings
           ) -> dict[Node, Place]:  # fmt: skip
    """The place of every node of ``graph``, each exactly one.

    Args:
        graph: a rewritten graph.
        origin: the node of ``captured`` that a node stands for; inserted nodes are absent.
        findings: of ``captured``.
    """
    own = captured_places(captured, findings)
    found: dict[Node, Place] = {}
    layer = STEM
    for node in graph.nodes:
        place = own.get(origin[node]) if node in origin else None
        if place is not None and node.op == "call_function":
            layer = place.layer
        if node.target in OF_FUNCTION:
            found[node] = Place(layer, OF_FUNCTION[node.target])
        elif isinstance(node.target, OwnMatching):
            found[node] = Place(layer, MATCHING)
        elif place is not None:
            found[node] = place
        else:
            before = [found[source].step for source in node.all_input_nodes if source in found]
            found[node] = Place(layer, before[0] if before else OTHER)
    return found


def captured_places(graph: Graph, findings: Findings) -> dict[Node, Place]:
    """The place of every node of a captured program."""
    cones = cones_of(graph)
    order = cones.order
    starts = [_start(site, cones) for site in findings.sites[:1]]
    ends = [order[site.mlp.end if site.mlp else site.node] for site in findings.sites]
    found = {}
    for node, position in order.items():
        index = sum(end < position for end in ends)
        if not starts or position <= starts[0] or node.op in ("placeholder", "get_attr"):
            found[node] = Place(STEM, ENDS)
        elif index == len(ends):
            found[node] = Place(HEAD, ENDS)
        else:
            found[node] = Place(str(index), _step(node, findings.sites[index], cones))
    return found


def _start(site: Site, cones: Cones) -> int:
    """Where the residual stream enters the first block: what is up to there makes the tokens."""
    core = site.cores[0].node
    before = [n for n in site.node.all_input_nodes if not cones.depends(n, core)]
    return max((cones.order[n] for n in before), default=-1)


def _step(node: Node, site: Site, cones: Cones) -> str:
    name = _name(node)
    if name in _NORMS:
        return NORM
    if site.mlp and _between(node, site.mlp.linears, cones):
        return MLP
    for core in site.cores:
        if cones.depends(core.node, node):
            return _before_core(node, name, core, cones)
        if cones.depends(node, core.node) and cones.depends(site.node, node):
            if name in _PRODUCTS:
                return ATTENTION
            return PROJECTIONS if name == "linear" or name in _LAYOUT else OTHER
    # An MLP whose first linear is one with that of the attention was not found as such.
    return MLP if name == "linear" else OTHER


def _before_core(node: Node, name: str, core: Core, cones: Cones) -> str:
    inner = node not in (core.query, core.key) and (
        cones.depends(node, core.query) or cones.depends(node, core.key)
    )
    if inner or node is core.node:
        return ATTENTION
    # What turns or scales queries and keys is neither a linear nor a change of layout.
    return PROJECTIONS if name == "linear" or name in _LAYOUT else ATTENTION


def _between(node: Node, linears: tuple[Node, ...], cones: Cones) -> bool:
    """Is the node one of the linears, or behind one of them and before another?"""
    behind = any(cones.depends(node, linear) for linear in linears)
    return behind and any(cones.depends(linear, node) for linear in linears)


def _name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return bind(node).name.removeprefix("aten.")
    return str(getattr(node.target, "__name__", ""))
