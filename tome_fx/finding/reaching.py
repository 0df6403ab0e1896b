"""Which site's tokens reach the next one: what a merge goes on from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from tome_fx.finding.joins import Types, holds, ids
from tome_fx.graph.calls import packet_name


def reaching(
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
        inputs = [n for n in here.all_input_nodes if holds(n, stream, types)]
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
    ends = [n if n in before else reaching(n, stream, before, types, mixing) for n in frames]
    ways = [_way(end, before) for end in ends]
    return [node for node in max(ways, key=len) if all(node in way for way in ways)][:1]


def _of_several(node: Node, types: Types) -> bool:
    """Was it made place by place of tokens of several streams? It has the name of one then."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    joined = packet_name(node.target) in ("aten.cat", "aten.stack")
    joins = joined or torch.Tag.pointwise in node.target.tags
    own = set(ids(types[node][0])) if joins and types.get(node) else set[int]()
    return any(own and set(ids(types[n][0])) - own for n in node.all_input_nodes if types.get(n))


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
