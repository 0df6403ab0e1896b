"""Attention inside windows, rows or frames, in programs where none is over all tokens.

    x = x + attn(windows(x))     site: tokens may merge behind the add, and what acts on each token
    x = x + mlp(norm(x))         alone runs merged; the attention gets all tokens back

Keys of such an attention are no row of the tokens that merge (they are pooled, or frames apart), so
the residual value itself is what matching compares: the features X of the paper's table 1a.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch.fx import Graph, Node

from tome_fx.finding.cores import Anchor, is_tokens, runs
from tome_fx.graph.axes import Axis, Batch, TensorType, extent, has_batch, has_stream
from tome_fx.graph.calls import bind
from tome_fx.graph.cones import Cones, cones_of
from tome_fx.graph.ends import channels_of
from tome_fx.graph.grids import fused
from tome_fx.program import Core, Site

_ADD = torch.ops.aten.add.Tensor
Types = Mapping[Node, tuple[TensorType, ...]]


def inner_runs(graph: Graph, found: Iterable[tuple[Anchor, ...]], plain: Types) -> list[Axis]:
    """The runs of factors that are tokens of a residual value around some attention."""
    cones = cones_of(graph)
    values = (residual_of(graph, row[0], plain, cones) for row in found)
    rows = (_tokens(plain[value][0]) for value in values if value is not None)
    return list(dict.fromkeys(filter(None, rows)))


def inner_cores(graph: Graph, found: Iterable[tuple[Anchor, ...]], types: Types) -> list[Core]:
    """A core for each attention inside a residual value that holds a stream."""
    cones = cones_of(graph)
    cores = []
    for anchor, *_ in found:
        residual = residual_of(graph, anchor, types, cones)
        held = fused(types[residual][0]).streams if residual is not None else ()
        if len(held) == 1:
            cores.append(Core(anchor.node, "inner", anchor.query, anchor.key, -1, held[0].id))
    return cores


def by_features(site: Site, types: Types) -> Site:
    """The site with its own value as what matching compares."""
    channel = channels_of(types[site.node][0])
    return replace(site, cores=(replace(site.cores[0], key=site.node, channel=channel),))


def uncut(node: Node, types: Types) -> Node:
    """The value that ``node`` is some of the tokens of, or that others were joined to."""
    while isinstance(node.target, torch._ops.OpOverload) and types.get(node):
        call = bind(node)
        if call.name not in ("aten.slice", "aten.cat"):
            break
        axis = types[node][0].axes[call["dim"]]
        sources = [n for n in node.all_input_nodes if _has_tokens(n, types)]
        if not _holds_tokens(axis) or len(sources) != 1:
            break
        node = sources[0]
    return node


def residual_of(graph: Graph, anchor: Anchor, types: Types, cones: Cones) -> Node | None:
    """What the first residual add behind an attention adds to."""
    for node in graph.nodes:
        if node.target is not _ADD or not cones.depends(node, anchor.node):
            continue
        for behind, before in (node.args[:2], node.args[1::-1]):
            both = isinstance(behind, Node) and isinstance(before, Node)
            if both and _leads(before, anchor, types, cones) and cones.depends(behind, anchor.node):
                return before  # type: ignore[no-any-return]
    return None


def _leads(node: Node, anchor: Anchor, types: Types, cones: Cones) -> bool:
    """Is ``node``, or what it is cut from, before the queries and keys of ``anchor``?"""
    if not types.get(node) or cones.depends(node, anchor.node):
        return False
    source = uncut(node, types)
    return all(cones.depends(operand, source) for operand in (anchor.query, anchor.key))


def _tokens(type_: TensorType) -> Axis:
    """What could be the tokens of an image, on one axis or on neighbouring ones; () if unclear."""
    if not any(len(axis) == 1 and isinstance(axis[0], Batch) for axis in type_.axes):
        return ()
    found = [(place, run) for place, axis in enumerate(type_.axes) for run in _places(axis)]
    places = [place for place, _ in found]
    if not places or places != list(range(places[0], places[0] + len(places))):
        return ()
    if len(found) > 1 and any(run != type_.axes[place] for place, run in found):
        return ()
    others = (axis for i, axis in enumerate(type_.axes) if i not in places and not has_batch(axis))
    if not any(extent(axis) > 1 for axis in others):
        return ()  # nothing is left for channels
    return tuple(factor for _, run in found for factor in run)


def _places(axis: Axis) -> Iterator[Axis]:
    """The pieces of an axis that hold places of an image or frames of a clip."""
    yield from (run for run in runs(axis) if is_tokens(run))


def _holds_tokens(axis: Axis) -> bool:
    return has_stream(axis) or any(True for _ in _places(axis))


def _has_tokens(node: Node, types: Types) -> bool:
    return any(map(_holds_tokens, types[node][0].axes)) if types.get(node) else False
