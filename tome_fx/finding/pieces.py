"""Pieces of a value: are keys those of another one than the tokens that merge?"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Graph, Node

from tome_fx.finding.cores import PRODUCTS
from tome_fx.finding.joins import Types, holds
from tome_fx.graph.calls import calls
from tome_fx.graph.cones import Cones
from tome_fx.graph.convolutions import CONVOLUTIONS
from tome_fx.graph.packed import PACKED
from tome_fx.program import Core

# What leaves less than all of a value: some of its channels, one frame, a sum of frames.
_TAKING = ("slice", "narrow", "select", "index_select", "index", "gather", "sum", "mean", "amax",
           "amin")  # fmt: skip
_PIECES = (*(f"aten.{name}" for name in _TAKING), *PRODUCTS)
_PROJECTIONS = ("aten.linear", *PACKED, *PRODUCTS, *CONVOLUTIONS)


@dataclass(frozen=True)
class Pieces:
    """The pieces that the values of a typed graph were made of.

    Attributes:
        by_place: what each value is made of place by place: not what an attention found elsewhere.
    """

    graph: Graph
    types: Types
    by_place: Cones

    def differ(self, core: Core, residual: Node) -> bool:
        """Is a residual made of a piece that the keys are not made of, and they not of it?

        Where the residual is the queries themselves, that is what tells queries from keys.
        """
        made_of = self.by_place.depends
        if made_of(core.key, residual) or self._is_query(core, residual):
            return False
        return any(
            made_of(residual, piece)
            and not made_of(core.key, piece)
            and holds(piece, core.stream, self.types)
            for piece in self._all
        )

    @cached_property
    def _all(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.target is operator.getitem or calls(n, _PIECES)]

    def _is_query(self, core: Core, residual: Node) -> bool:
        """Are the queries the residual itself, laid out, normed or scaled?"""
        node = core.query
        while node is not residual and not calls(node, _PROJECTIONS):
            held = [n for n in node.all_input_nodes if holds(n, core.stream, self.types)]
            if len(held) != 1:
                return False
            node = held[0]
        return node is residual
