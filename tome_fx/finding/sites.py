"""Sites: the residual add behind each attention core, and what its tokens merge by."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from tome_fx.finding.inner import by_features
from tome_fx.finding.joins import Joins, Types
from tome_fx.finding.mlps import Mlps
from tome_fx.finding.pieces import Pieces
from tome_fx.finding.reaching import Reach, of_several
from tome_fx.graph.axes import Frames, TensorType
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.cones import cones_of
from tome_fx.graph.frames import is_of
from tome_fx.program import Core, Miss, Site

_OF_OTHERS = "the residual add behind it is of other tokens, those of all windows or pieces, say"


@dataclass(frozen=True)
class Found:
    """What was found behind the cores of a program.

    Attributes:
        sites: in program order.
        misses: the cores without one.
        mixing: calls on tokens of several frames or images that are branches of one stream.
        shared: does any stand where several views of an image share its place in the batch?
    """

    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    mixing: frozenset[Node]
    shared: bool


def find_sites(
    graph: Graph,
    cores: list[Core],
    types: Types,
    anchors: Iterable[Node],
    mixing: frozenset[Node] = frozenset(),
    views: bool = False,
) -> Found:
    """A site for each group of parallel cores, and what has none.

    Args:
        anchors: all attention, that of the cores too.
        mixing: such calls that are known before; attention between images is added to them.
        views: also where several views of an image share its place in the batch.
    """
    joins = Joins(graph, types, cones_of(graph), mixing)
    order, mlps = joins.cones.order, Mlps(joins, tuple(anchors))
    groups: dict[tuple[Node, int], list[Core]] = {}
    residuals: dict[Node, Node] = {}
    misses = []
    for core in cores:
        found = joins.of(core)
        if found is not None:
            reason = _refused(types[found[0]][0], views)
        else:
            reason = _OF_OTHERS if joins.of_other_tokens(core) else "no residual add follows it"
        if reason:
            misses.append(Miss(core.node, "attention", reason))
        elif found is not None:
            groups.setdefault((found[0], core.stream), []).append(core)
            residuals.setdefault(*found)
    places = sorted({node for node, _ in groups}, key=lambda node: order[node])
    after = dict(itertools.pairwise(places))
    asked = {joins.weighing(core): core.query for core in cores}
    before: dict[int, dict[Node, Node | None]] = {core.stream: {} for core in cores}
    several = of_several(graph, types)
    reach = {i: Reach(i, sites, types, mixing, asked, several) for i, sites in before.items()}
    pieces = Pieces(graph, types, cones_of(graph, set(asked)))
    sites: list[Site] = []
    for (node, stream), own in sorted(groups.items(), key=lambda item: order[item[0][0]]):
        mlp = mlps.of(node, residuals[node], own, after.get(node))
        came = reach[stream].last(node)
        of_it = tuple(
            core
            for core in own
            if core.kind == "inner"
            or (
                _is_row(types[core.key][0], stream)
                and reach[stream].at(core.key) is came
                and not pieces.differ(core, residuals[node])
            )
        )
        site = Site(node, of_it or tuple(own), stream, mlp, came)
        sites.append(site if of_it else by_features(site, types))
        before[stream][node] = came
    apart = {node for node in graph.nodes if _meet_apart(node, reach, types)}
    shared = any(_shares_images(types[site.node][0]) for site in sites)
    return Found(tuple(sites), tuple(misses), mixing | apart, shared)


def _meet_apart(node: Node, reach: Mapping[int, Reach], types: Types) -> bool:
    """Does each token of a value meet each of another that came by other sites?

    Queries, keys and values do, in attention between images that share their places, and two such
    images in a product without attention.
    """
    result = types[node][0].ids if types.get(node) else ()
    for stream, times in Counter(result).items():
        if stream not in reach or (times < 2 and node not in reach[stream].asked):
            continue
        rows = [n for n in _but_for_the_mask(node) if types.get(n) and _is_row(types[n][0], stream)]
        rows += [reach[stream].asked[node]] if node in reach[stream].asked else []
        if len({reach[stream].at(n) for n in rows}) > 1:
            return True
    return False


def _but_for_the_mask(node: Node) -> list[Node]:
    """The operands of a call, but for the mask of an attention: data of the same places."""
    if not calls(node, ("aten.scaled_dot_product_attention",)):
        return node.all_input_nodes
    call = bind(node)
    return [call[name] for name in ("query", "key", "value")]


def _is_row(type_: TensorType, stream: int) -> bool:
    return type_.ids.count(stream) == 1


def _refused(type_: TensorType, views: bool) -> str:
    """Why nothing may merge at a residual add of this type; "" if something may."""
    if _shares_images(type_) and not views:
        return "several views of an image share its place in the batch"
    if _holds_more_places(type_):
        return "its tokens are rows or sums of the places that the residual holds"
    return ""


def _shares_images(type_: TensorType) -> bool:
    """Do several images, views or crops share one place of the batch, and a plan?"""
    return any(
        is_of(factor, ("images", "copies")) and not isinstance(factor, Frames)
        for axis in type_.axes
        for factor in axis
    )


def _holds_more_places(type_: TensorType) -> bool:
    """Does a residual with a stream hold places beside it? Whole rows of them would merge then.

    Landmarks, means of rows that attend to each other, are such a stream.
    """
    return any(
        is_of(factor, ("conv",)) and not isinstance(factor, Frames)
        for axis in type_.axes
        for factor in axis
    )
