"""Sites: the residual add behind each attention core, and the MLP that follows it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch.fx import Graph, Node

from tome_fx.finding.inner import uncut
from tome_fx.graph.axes import Atom, TensorType, streams
from tome_fx.graph.calls import bind, packet_name
from tome_fx.graph.cones import Cones, cones_of
from tome_fx.graph.convolutions import CONVOLUTIONS, sees_one_place
from tome_fx.graph.grids import fused
from tome_fx.graph.provenance import common_path
from tome_fx.program import Core, Miss, Mlp, Site

_ADD = torch.ops.aten.add.Tensor
_SCALING = ("aten._to_copy", "aten.to", "aten.dropout", "aten.clone")
_JOINS = ("aten.add", "aten.sub", "aten.rsub", "aten.lerp", "aten.addcmul", "aten.gru_cell")
Types = Mapping[Node, tuple[TensorType, ...]]


def find_sites(
    graph: Graph, cores: list[Core], types: Types, mixing: frozenset[Node] = frozenset()
) -> tuple[tuple[Site, ...], list[Miss]]:
    """A site for each group of parallel cores, in program order, and the cores without one.

    ``mixing``: calls on tokens of several frames that are branches of one stream.
    """
    cones = cones_of(graph)
    groups: dict[tuple[Node, int], list[Core]] = {}
    residuals: dict[Node, Node] = {}
    misses = []
    for core in cores:
        found = _site_node(graph, core, types, cones, mixing)
        if found is not None and _shares_images(types[found[0]][0]):
            reason = "several views of an image share its place in the batch"
            misses.append(Miss(core.node, "attention", reason))
        elif found is not None and _holds_more_places(types[found[0]][0]):
            reason = "its tokens are rows or sums of the places that the residual holds"
            misses.append(Miss(core.node, "attention", reason))
        elif found is None:
            misses.append(Miss(core.node, "attention", "no residual add follows it"))
        else:
            groups.setdefault((found[0], core.stream), []).append(core)
            residuals.setdefault(*found)
    places = sorted({node for node, _ in groups}, key=lambda node: cones.order[node])
    after = dict(itertools.pairwise(places))
    anchors = [core.node for core in cores]
    sites: list[Site] = []
    for (node, stream), own in sorted(groups.items(), key=lambda item: cones.order[item[0][0]]):
        mlp = _mlp(graph, node, residuals[node], own, after.get(node), anchors, types, cones)
        before = {site.node: site.after for site in sites if site.stream == stream}
        came = _reaching(node, stream, before, types, mixing)
        sites.append(Site(node, tuple(own), stream, mlp, came))
    return tuple(sites), misses


def _reaching(
    site: Node,
    stream: int,
    before: Mapping[Node, Node | None],
    types: Types,
    mixing: frozenset[Node],
) -> Node | None:
    """The last site whose tokens reach ``site``, not only what was read of them.

    Branches (the frames of a clip one by one, two decoders) each go on from where they part, and
    what joins them from there too. ``before``: earlier sites, and what reaches each.
    """
    waiting, seen = [site], {site}
    found: list[Node] = []
    while waiting:
        here = waiting.pop()
        inputs = [n for n in here.all_input_nodes if _holds(n, stream, types)]
        if here in mixing:
            found.extend(_parted(inputs, stream, before, types, mixing))
        elif not _of_several(here, types):
            for node in dict.fromkeys(inputs):
                if node not in seen:
                    seen.add(node)
                    (found if node in before else waiting).append(node)
    ways = [_way(node, before) for node in found]
    last = max(ways, key=len, default=[])
    return next((node for node in last if all(_on_one_line(node, way, last) for way in ways)), None)


def _parted(
    frames: list[Node],
    stream: int,
    before: Mapping[Node, Node | None],
    types: Types,
    mixing: frozenset[Node],
) -> list[Node]:
    """The last site that all of some frames come from, if there is one."""
    ends = [n if n in before else _reaching(n, stream, before, types, mixing) for n in frames]
    ways = [_way(end, before) for end in ends]
    return [node for node in max(ways, key=len) if all(node in way for way in ways)][:1]


def _of_several(node: Node, types: Types) -> bool:
    """Was it made place by place of tokens of several streams? It has the name of one then."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    joined = packet_name(node.target) in ("aten.cat", "aten.stack")
    joins = joined or torch.Tag.pointwise in node.target.tags
    own = set(_ids(types[node][0])) if joins and types.get(node) else set[int]()
    return any(own and set(_ids(types[n][0])) - own for n in node.all_input_nodes if types.get(n))


def _way(site: Node | None, before: Mapping[Node, Node | None]) -> list[Node]:
    """A site and those before it, the last first."""
    way: list[Node] = []
    while site is not None:
        way.append(site)
        site = before[site]
    return way


def _on_one_line(node: Node, way: list[Node], last: list[Node]) -> bool:
    """Is ``node`` on this way, or is the way a part of the one that it is on?"""
    return node in way or way[0] in last


def _shares_images(type_: TensorType) -> bool:
    """Do several images, views or crops share one place of the batch?"""
    return any(
        isinstance(factor, Atom) and factor.origin.kind in ("images", "copies")
        for axis in type_.axes
        for factor in axis
    )


def _holds_more_places(type_: TensorType) -> bool:
    """Does a residual with a stream hold places beside it? Whole rows of them would merge then.

    Landmarks, means of rows that attend to each other, are such a stream.
    """
    return any(
        isinstance(factor, Atom) and factor.origin.kind == "conv"
        for axis in type_.axes
        for factor in axis
    )


def _site_node(
    graph: Graph, core: Core, types: Types, cones: Cones, mixing: frozenset[Node]
) -> tuple[Node, Node] | None:
    """The site of a core and the residual value that it adds to."""
    for node in graph.nodes:
        if cones.order[node] <= cones.order[core.node] or not _joins(node, core, types):
            continue
        for behind, before in (node.args[:2], node.args[1::-1]):
            source = _scaled(before, core.stream, types)
            if cones.depends(behind, core.node) and _is_upstream(source, core, cones):
                return _sink(node, core.stream, types, mixing), source
    return _other_join(graph, core, types, cones)


def _other_join(graph: Graph, core: Core, types: Types, cones: Cones) -> tuple[Node, Node] | None:
    """The first weighing of something behind a core with something that is not, of its tokens.

    For blocks without a plain residual add: interpolation on a sphere, connections that mix several
    copies of the stream, an attention that adds to its values.
    """
    for node in graph.nodes:
        if not cones.depends(node, core.node):
            continue
        held = _joined(node, core.stream, types)
        before = [n for n in held if not cones.depends(n, core.node)]
        if before and len(held) > len(before):
            return node, before[0]
    return None


def _joined(node: Node, stream: int, types: Types) -> list[Node]:
    """The values of the stream that ``node`` weighs together; none if it does not."""
    named = isinstance(node.target, torch._ops.OpOverload) and bind(node).name in _JOINS
    held = [n for n in node.all_input_nodes if _holds(n, stream, types)] if named else []
    return held if len(held) > 1 and _holds(node, stream, types) else []


def _holds(node: Node, stream: int, types: Types) -> bool:
    return bool(types.get(node)) and stream in _ids(types[node][0])


def _scaled(node: Node, stream: int, types: Types) -> Node:
    """What a residual is before it is scaled, cast, dropped or cut on its way to the add."""
    while isinstance(node.target, torch._ops.OpOverload):
        streamed = [n for n in node.all_input_nodes if types.get(n) and _ids(types[n][0])]
        plain = torch.Tag.pointwise in node.target.tags or bind(node).name in _SCALING
        if plain and len(streamed) == 1 and stream in _ids(types[streamed[0]][0]):
            node = streamed[0]
        else:
            source = uncut(node, types)
            if source is node:
                break
            node = source
    return node


def _is_upstream(node: Node, core: Core, cones: Cones) -> bool:
    return cones.depends(core.query, node) and not cones.depends(node, core.node)


def _sink(node: Node, stream: int, types: Types, mixing: frozenset[Node]) -> Node:
    """Parallel blocks add more branches at once: the site is the last of such a row of adds."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if not _is_add(user, stream, types) or user.args[0] is user.args[1] or user in mixing:
            break
        node = user
    return node


def _joins(node: Node, core: Core, types: Types) -> bool:
    """Is ``node`` an add that can be the site of ``core``?

    What comes back from an attention inside windows may be told apart by place: averaged there.
    """
    return _is_add(node, core.stream, types, told_apart=core.kind == "inner")


def _is_add(node: Node, stream: int, types: Types, told_apart: bool = False) -> bool:
    """An add of two values of the same type that hold the stream; of one that does, if told."""
    operands = [operand for operand in node.args[:2] if isinstance(operand, Node)]
    if node.target is not _ADD or len(operands) != 2:
        return False
    held = [_holds(n, stream, types) for n in (*operands, node)]
    return held[2] and (any if told_apart else all)(held[:2])


def _ids(type_: TensorType) -> list[int]:
    return [stream.id for stream in streams(fused(type_))]


def _mlp(
    graph: Graph,
    site: Node,
    residual: Node,
    cores: list[Core],
    following: Node | None,
    anchors: Iterable[Node],
    types: Types,
    cones: Cones,
) -> Mlp | None:
    """The linears between a site and the next residual add, or beside the core in its block."""
    last = cones.order[following] if following is not None else len(cones.order)
    later = [n for n in anchors if cones.order[site] < cones.order[n]]
    for node in graph.nodes:
        if not cones.order[site] < cones.order[node] < last:
            continue
        if _joined(node, cores[0].stream, types) and cones.depends(node, site):
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
