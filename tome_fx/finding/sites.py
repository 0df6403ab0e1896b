"""Sites: the residual add behind each attention core, and what its tokens merge by."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from tome_fx.finding.inner import by_features
from tome_fx.finding.joins import Joins, Types
from tome_fx.finding.mlps import mlp_of
from tome_fx.finding.reaching import reaching
from tome_fx.graph.axes import Atom, TensorType
from tome_fx.graph.cones import cones_of
from tome_fx.program import Core, Miss, Site


@dataclass(frozen=True)
class Found:
    """What was found behind the cores of a program.

    Attributes:
        sites: in program order.
        misses: the cores without one.
        mixing: calls on tokens of several frames or images that are branches of one stream.
    """

    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    mixing: frozenset[Node]


def find_sites(
    graph: Graph, cores: list[Core], types: Types, mixing: frozenset[Node] = frozenset()
) -> Found:
    """A site for each group of parallel cores, and what has none.

    ``mixing``: such calls that are known before; attention between images is added to them.
    """
    joins = Joins(graph, types, tuple(cores), cones_of(graph), mixing)
    order = joins.cones.order
    groups: dict[tuple[Node, int], list[Core]] = {}
    residuals: dict[Node, Node] = {}
    crossing: list[Core] = []
    misses = []
    for core in cores:
        found = joins.of(core)
        reason = "no residual add follows it" if found is None else _refused(types[found[0]][0])
        if reason:
            misses.append(Miss(core.node, "attention", reason))
        elif found is not None:
            groups.setdefault((found[0], core.stream), []).append(core)
            residuals.setdefault(*found)
        if found is not None and joins.crosses(core, found[1]):
            crossing.append(core)
    mixing = mixing.union(*map(joins.products, crossing))
    places = sorted({node for node, _ in groups}, key=lambda node: order[node])
    after = dict(itertools.pairwise(places))
    sites: list[Site] = []
    for (node, stream), own in sorted(groups.items(), key=lambda item: order[item[0][0]]):
        mlp = mlp_of(joins, node, residuals[node], own, after.get(node))
        before = {site.node: site.after for site in sites if site.stream == stream}
        came = reaching(node, stream, before, types, mixing)
        sites.append(_site(Site(node, tuple(own), stream, mlp, came), crossing, types))
    return Found(tuple(sites), tuple(misses), mixing)


def _site(site: Site, crossing: list[Core], types: Types) -> Site:
    """The site without keys that are of other values than it merges; by its own without others."""
    own = tuple(core for core in site.cores if core not in crossing)
    return replace(site, cores=own) if own else by_features(site, types)


def _refused(type_: TensorType) -> str:
    """Why nothing may merge at a residual add of this type; "" if something may."""
    if _shares_images(type_):
        return "several views of an image share its place in the batch"
    if _holds_more_places(type_):
        return "its tokens are rows or sums of the places that the residual holds"
    return ""


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
