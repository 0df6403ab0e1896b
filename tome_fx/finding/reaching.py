"""Which site's tokens reach the next one: what a merge goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx.finding.joins import Types, holds
from tome_fx.graph.calls import packet_name
from tome_fx.graph.cones import read_values


@dataclass(frozen=True)
class Reach:
    """The way back from values of one stream to the sites before them, place by place.

    Branches (the frames of a clip one by one, two decoders) each go on from where they part, and
    what joins them from there too. What an attention finds stands at the places of its queries.

    Attributes:
        before: earlier sites, and what reaches each.
        mixing: calls on tokens of several frames that are branches of one stream.
        asked: the queries of each attention, by the call that weighs its values.
        several: see :func:`of_several`.
    """

    stream: int
    before: Mapping[Node, Node | None]
    types: Types
    mixing: frozenset[Node]
    asked: Mapping[Node, Node]
    several: Set[Node]

    def last(self, value: Node) -> Node | None:
        """The last site whose tokens reach ``value``, not only what was read of them."""
        waiting, seen = [value], {value}
        found: list[Node] = []
        while waiting:
            here = waiting.pop()
            inputs = self._inputs(here)
            if here in self.mixing and here not in self.asked:
                found.extend(self._parted(inputs))
            elif here not in self.several:
                for node in dict.fromkeys(inputs):
                    if node not in seen:
                        seen.add(node)
                        (found if node in self.before else waiting).append(node)
        ways = [self._way(node) for node in found]
        last = max(ways, key=len, default=[])
        on_all = (node for node in last if all(_on_one_line(node, way, last) for way in ways))
        return next(on_all, None)

    def at(self, value: Node) -> Node | None:
        """The last site of a value, which may be one itself."""
        return value if value in self.before else self.last(value)

    def _inputs(self, node: Node) -> list[Node]:
        read = [self.asked[node]] if node in self.asked else read_values(node)
        return [n for n in read if holds(n, self.stream, self.types)]

    def _parted(self, frames: list[Node]) -> list[Node]:
        """The last site that all of some frames come from, if there is one."""
        ways = [self._way(self.at(frame)) for frame in frames]
        longest = max(ways, key=len, default=[])
        return [node for node in longest if all(node in way for way in ways)][:1]

    def _way(self, site: Node | None) -> list[Node]:
        """A site and those before it, the last first."""
        way: list[Node] = []
        while site is not None:
            way.append(site)
            site = self.before[site]
        return way


def of_several(graph: Graph, types: Types) -> frozenset[Node]:
    """The values made place by place of tokens of several streams, which have the name of one."""
    return frozenset(node for node in graph.nodes if _of_several(node, types))


def _of_several(node: Node, types: Types) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    joined = packet_name(node.target) in ("aten.cat", "aten.stack")
    joins = joined or torch.Tag.pointwise in node.target.tags
    own = set(types[node][0].ids) if joins and types.get(node) else set[int]()
    return any(own and set(types[n][0].ids) - own for n in node.all_input_nodes if types.get(n))


def _on_one_line(node: Node, way: list[Node], last: list[Node]) -> bool:
    """Is ``node`` on this way, or is the way a part of the one that it is on?"""
    return node in way or way[0] in last
