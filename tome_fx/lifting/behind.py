"""What becomes of merged tokens behind a call: is there work on them before all come back?"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import torch
from torch.fx import Node

from tome_fx.finding.infer import Types, picked_type
from tome_fx.graph.axes import TensorType, is_extensive, is_merged
from tome_fx.graph.calls import Call, bind, calls, tensor_operands
from tome_fx.macs import macs_of
from tome_fx.program import Program
from tome_fx.rules.base import Lifted, Refusal

# A token that is read behind them is read by itself.
_CUTS = ("aten.select", "aten.slice", "aten.narrow")


class _End(Enum):
    """What becomes of merged tokens first: a product, all tokens, one value of them, or a cut."""

    WORK = auto()
    BACK = auto()
    POOL = auto()
    CUT = auto()


@dataclass
class Behind:
    """Looks ahead; ``ask`` answers how a call runs if some values had the types that are given."""

    program: Program
    ask: Callable[[Call, Mapping[Node, Types]], Lifted | Refusal]

    @cached_property
    def work(self) -> Mapping[Node, int]:
        """The captured products, by their MACs."""
        return macs_of(self.program.graph, self.program.extents, self.program.batch)

    def come_back_idle(self, user: Node, types: Types) -> bool:
        """Do all tokens come back behind ``user``, whose results have ``types``, before any work?

        Work is a product of merged tokens: all else costs next to nothing. Where no token comes
        back, since a pool or a class token is all that is read, the answer is no.
        """
        return user not in self.work and self._end(user, types) is _End.BACK

    def are_told_idle(self, user: Node, types: Types) -> bool:
        """The same, and yes where a pool reads them, of which each member has a part.

        ``user`` itself may be a product, with a row for each of them.
        """
        return self._end(user, types) in (_End.BACK, _End.POOL)

    def are_told(self, user: Node, types: Types) -> bool:
        """Is more read of them than tokens that are cut out, which stand for no others?"""
        return self._end(user, types) is not _End.CUT

    def are_told_of_totals(self, user: Node, types: Types) -> bool:
        """Is more done with what the members of a group have together than sums and products?"""
        held = {user: types}
        for node in _after(user):
            if held.keys().isdisjoint(node.all_input_nodes):
                continue
            results = self._results(node, held)
            if results is None or self._takes_members(node, held):
                return True
            if any(map(has_totals, results)):
                held[node] = results
        return False

    def _takes_members(self, node: Node, held: Mapping[Node, Types]) -> bool:
        """Does a call read an equal part for each member in totals that are ``held``?"""
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        call = bind(node)
        answer = self.ask(call, held)
        return isinstance(answer, Refusal) or any(
            path in answer.operands and not has_totals(answer.operands[path])
            for path, operand in tensor_operands(call)
            if operand in held
        )

    def _end(self, user: Node, types: Types) -> _End:
        held, end = {user: types}, _End.CUT
        for node in _after(user):
            if held.keys().isdisjoint(node.all_input_nodes):
                continue
            results = self._results(node, held)
            if results is None:
                end = _End.BACK
            elif node in self.work:
                return _End.WORK
            elif any(map(is_merged, results)):
                held[node] = results
            elif node.target is operator.getitem or calls(node, _CUTS):
                continue
            elif results and end is _End.CUT:
                end = _End.POOL
        return end

    def _results(self, node: Node, held: Mapping[Node, Types]) -> Types | None:
        """The types of what a call makes of merged tokens; None where all of them come back."""
        picked = picked_type(node, held)
        if picked is not None or node.target is torch.ops.aten.sym_size.int:
            return picked or ()
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        answer = self.ask(bind(node), held)
        return None if isinstance(answer, Refusal) else answer.results


def has_totals(type_: TensorType) -> bool:
    """Does a value hold what the members of groups have together, along any axis?"""
    return any(map(is_extensive, type_.axes))


def _after(user: Node) -> Iterator[Node]:
    node = user.next
    while node.op != "root":
        yield node
        node = node.next
