"""Where what an attention makes meets its values, and comes back to the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch.fx import Graph, Node

from tome_fx.finding.cores import PRODUCTS
from tome_fx.finding.inner import uncut
from tome_fx.graph.axes import TensorType, leads, streams_of_axis
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.cones import Cones
from tome_fx.program import Core

_ADD = torch.ops.aten.add.Tensor
_SCALING = ("aten._to_copy", "aten.to", "aten.dropout", "aten.clone")
_JOINS = ("aten.add", "aten.sub", "aten.rsub", "aten.lerp", "aten.addcmul", "aten.gru_cell")
Types = Mapping[Node, tuple[TensorType, ...]]


@dataclass(frozen=True)
class Joins:
    """The values of a typed graph that are weighed with others of the same tokens.

    Attributes:
        mixing: calls on tokens of several frames or images that are branches of one stream.
    """

    graph: Graph
    types: Types
    cones: Cones
    mixing: frozenset[Node]

    @cached_property
    def weighings(self) -> tuple[Node, ...]:
        """The calls that can weigh values together, in order."""
        return tuple(node for node in self.graph.nodes if calls(node, _JOINS))

    def of(self, core: Core) -> tuple[Node, Node] | None:
        """The site of a core and the residual value that it adds to."""
        for node, source in self._adds(core):
            if self.cones.depends(core.query, source):
                return self._sink(node, core.stream), source
        return self._other(core)

    def of_other_tokens(self, core: Core) -> bool:
        """Does an add follow that would be the site, did it hold the tokens of the core?

        Behind windows, say: what it adds to are those of all of them.
        """
        depends = self.cones.depends
        for node in self.weighings:
            held = [n for n in node.all_input_nodes if self.types.get(n)]
            behind = [n for n in held if depends(n, core.node)]
            if behind and any(depends(core.query, n) for n in held if n not in behind):
                return True
        return False

    def weighing(self, core: Core) -> Node:
        """Where the weights of an attention meet its values; it itself where it is one call."""
        depends = self.cones.depends
        for node in self.graph.nodes if core.kind != "sdpa" else ():
            if not depends(node, core.node) or not calls(node, PRODUCTS):
                continue
            others = (n for n in node.all_input_nodes if not depends(n, core.node))
            if any(holds(n, core.stream, self.types) for n in others):
                found: Node = node
                return found
        return core.node

    def joined(self, node: Node, stream: int) -> list[Node]:
        """The values of the stream that one of the ``weighings`` does; none if just one."""
        held = [n for n in node.all_input_nodes if holds(n, stream, self.types)]
        return held if len(held) > 1 and holds(node, stream, self.types) else []

    def _adds(self, core: Core) -> Iterator[tuple[Node, Node]]:
        """Adds of something behind a core to something that is not: the add, and what that is."""
        depends = self.cones.depends
        for node in self.weighings:
            if not depends(node, core.node) or not self._is_join(node, core):
                continue
            one, other = cast("tuple[Node, Node]", node.args[:2])
            for behind, before in ((one, other), (other, one)):
                source = self._unscaled(before, core.stream)
                if depends(behind, core.node) and not depends(source, core.node):
                    yield node, source

    def _other(self, core: Core) -> tuple[Node, Node] | None:
        """The first weighing of something behind a core with something that is not.

        For blocks without a plain residual add: interpolation on a sphere, connections that mix
        several copies of the stream, an attention that adds to its values.
        """
        for node in self.weighings:
            if not self.cones.depends(node, core.node):
                continue
            held = self.joined(node, core.stream)
            before = [n for n in held if not self.cones.depends(n, core.node)]
            if before and len(held) > len(before):
                return node, before[0]
        return None

    def _unscaled(self, node: Node, stream: int) -> Node:
        """What a residual is before it is scaled, cast, dropped or cut on its way to the add."""
        types = self.types
        while isinstance(node.target, torch._ops.OpOverload):
            streamed = [n for n in node.all_input_nodes if types.get(n) and types[n][0].ids]
            plain = torch.Tag.pointwise in node.target.tags or bind(node).name in _SCALING
            if plain and len(streamed) == 1 and stream in types[streamed[0]][0].ids:
                node = streamed[0]
            else:
                source = uncut(node, types)
                if source is node:
                    break
                node = source
        return node

    def _sink(self, node: Node, stream: int) -> Node:
        """Parallel blocks add more branches at once: the site is the last of such a row of adds."""
        while len(node.users) == 1:
            user = next(iter(node.users))
            twice = user.args[:1] == user.args[1:2]
            if not self._is_add(user, stream) or twice or user in self.mixing:
                break
            node = user
        return node

    def _is_join(self, node: Node, core: Core) -> bool:
        """Is ``node`` an add that can be the site of ``core``?

        What comes back from an attention inside windows may be told apart by place: averaged there.
        """
        return self._is_add(node, core.stream, told_apart=core.kind == "inner")

    def _is_add(self, node: Node, stream: int, told_apart: bool = False) -> bool:
        """An add of two values of the same type that hold the stream; of one that does, if told."""
        operands = [operand for operand in node.args[:2] if isinstance(operand, Node)]
        if node.target is not _ADD or len(operands) != 2:
            return False
        # Weights that are carried on to the next block are of pairs of tokens.
        if any(_is_of_pairs(type_, stream) for type_ in self.types.get(node, ())):
            return False
        held = [holds(n, stream, self.types) for n in (*operands, node)]
        return held[2] and (any if told_apart else all)(held[:2])


def holds(node: Node, stream: int, types: Types) -> bool:
    """Does a value hold tokens of a stream, in any of its parts where it has several?"""
    return any(stream in type_.ids for type_ in types.get(node, ()))


def _is_of_pairs(type_: TensorType, stream: int) -> bool:
    rows = (axis for axis in type_.axes if leads(axis))
    return sum(any(own.id == stream for own in streams_of_axis(axis)) for axis in rows) > 1
