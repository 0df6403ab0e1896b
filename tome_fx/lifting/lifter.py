"""One op at a time from the captured graph to the rewritten one: values, levels, fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx.finding.infer import (
    Types,
    measured_axis,
    output_shapes,
    picked_type,
)
from tome_fx.finding.naming import Names
from tome_fx.graph.axes import (
    Axis,
    TensorType,
    has_stream,
    is_merged,
    map_type,
)
from tome_fx.graph.calls import Call, bind, tensor_operands, unbind
from tome_fx.graph.grids import is_whole
from tome_fx.graph.provenance import origin_of
from tome_fx.graph.values import needed_for
from tome_fx.lifting.averaging import Averages, Operands
from tome_fx.lifting.behind import Behind, has_totals
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.lost import hides_images, hides_of_all_frames, loses_frames
from tome_fx.lifting.meeting import Meeting
from tome_fx.lifting.placed import OF_A_TABLE, Placed
from tome_fx.options import Remerge
from tome_fx.program import Coerced, Findings, Program
from tome_fx.rules.ask import ask
from tome_fx.rules.base import Context, Lifted, Refusal


@dataclass
class Value:
    """What a captured node became: a rewritten node, and the types of its outputs."""

    node: Any
    types: Types


@dataclass
class Lifter:
    """The state of a lift: appends to ``graph`` and remembers what each captured node became."""

    program: Program
    findings: Findings
    prop_attn: bool
    remerge: Remerge = "mean"
    graph: Graph = field(default_factory=Graph)
    origin: dict[Node, Node] = field(default_factory=dict)
    coerced: list[Coerced] = field(default_factory=list)
    values: dict[Node, Value] = field(default_factory=dict)
    # What a site was before its own merge: what leaves the program there loses nothing.
    before: dict[Node, Value] = field(default_factory=dict)
    sizes: dict[Node, Axis] = field(default_factory=dict)
    # Streams whose tokens came back where they met more than what had merged.
    parted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        axes = ((n, measured_axis(n, self.findings.types)) for n in self.program.graph.nodes)
        self.sizes.update((node, axis) for node, axis in axes if axis is not None)
        self.coercer = Coercer(self.graph)
        single = self.program.of_images if self.program.one_image else frozenset()
        self.meeting = Meeting(self.coercer.levels, self.findings.mixing, single)
        self.averages = Averages(self.program, self.findings, self.remerge)
        self.names = Names(self.program, self.findings.streams)
        self.behind = Behind(self.program, self._answer)
        self.placed = Placed(self.averages, self.behind)

    def lift(self, node: Node) -> None:
        """Append what a captured call becomes."""
        picked = self._picked(node)
        if picked is not None:
            self.put(node, *picked)
            if node.args[0] in self.averages.mixed:
                self.averages.tell_apart(node)
        elif self._measures_images(node):
            self.put(node, self.copy(node, {}), ())
        elif isinstance(node.target, torch._ops.OpOverload):
            self._call(bind(node))
        else:
            self._unmerged(node, f"no rule for {node.target}")

    def ahead(self, node: Node) -> Value | None:
        """What becomes of a captured value that no image has a part in, also before its turn.

        None where it has the shape of one that has not had its turn.
        """
        for own in needed_for(node):
            if own in self.values:
                continue
            if not all(n in self.values for n in own.all_input_nodes):
                return None
            if own.op == "get_attr":
                self.put(own, self.copy(own, {}), self.findings.types[own])
            else:
                self.lift(own)
        return self.values.get(node)

    def put(self, node: Node, new: Node, types: Types) -> None:
        """Remember what ``node`` became."""
        self.values[node] = Value(new, types)
        self.origin.setdefault(new, node)

    def copy(self, node: Node, replaced: Mapping[Node, Node]) -> Node:
        """``node`` as it is, on rewritten operands."""

        def swap(operand: Node) -> Any:
            return replaced.get(operand, self.values[operand].node)

        args, kwargs = map_arg(node.args, swap), map_arg(node.kwargs, swap)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = _carried(node)
        return new

    def original(self, operand: Node, user: Node, reason: str) -> Node:
        """A value with all its tokens, in their order, for ``user``."""
        value = self.before.get(operand) or self.values[operand]
        if not any(is_merged(type_) for type_ in value.types):
            if operand in self.before and user.op != "output":
                self.coerced.append(Coerced("unmerge", user, reason, self._bytes(operand)))
            return value.node  # type: ignore[no-any-return]
        have = value.types[0]
        want = map_type(have, lambda s: self.coercer.levels.at(replace(s, extensive=False), 0))
        self.coerced.append(Coerced("unmerge", user, reason, self._bytes(operand)))
        return self.coercer.coerce(value.node, have, want)

    # -- calls ------------------------------------------------------------------------------

    def _picked(self, node: Node) -> tuple[Node, Types] | None:
        """One output of a call with several."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or source not in self.values:
            return None
        types = picked_type(node, {source: self.values[source].types})
        return None if types is None else (self.copy(node, {}), types)

    def _measures_images(self, node: Node) -> bool:
        """Is it the size of an axis that no merge changes?"""
        axis = self.sizes.get(node)
        if axis is None or has_stream(axis):
            return False
        now = {source: self.values[source].types for source in node.all_input_nodes}
        return measured_axis(node, now) == axis

    def _call(self, call: Call) -> None:
        paths = {p: n for p, n in tensor_operands(call) if self.values[n].types}
        have = {path: self.values[node].types[0] for path, node in paths.items()}
        met = self.meeting.of(call, have)
        answer = self._answer(call, {})
        if isinstance(answer, Refusal):
            self._unmerged(call.node, answer.reason)
            return
        want = {path: answer.operands.get(path, met[path]) for path in paths}
        operands = Operands(paths, have, want)
        made = list(self.averages.made(call.node, operands))
        tables = self.placed.tables(call.node, operands, answer.results)
        reason = self._reason(call.node, answer, operands, bool(made), bool(tables))
        if reason:
            self._unmerged(call.node, reason)
            return
        for node, why in made + [(table, OF_A_TABLE) for table in tables]:
            self.coerced.append(Coerced("merge", call.node, why, self._bytes(node)))
        for path, node in paths.items():
            if _is_deeper(have[path], met[path]):
                why = "it joins branches that merged each by itself"
                self.coerced.append(Coerced("unmerge", call.node, why, self._bytes(node)))
            if answer.unmerges and _is_deeper(met[path], want[path]):
                why = answer.unmerges
                self.coerced.append(Coerced("unmerge", call.node, why, self._bytes(node)))
        nodes: dict[str, Node] = {}
        for path, node in paths.items():
            table, value = self.averages.is_table(node, have[path]), self.values[node].node
            nodes[path] = self.coercer.coerce(value, have[path], want[path], table)
        new = self._emit(call, answer, nodes)
        results = self.names.of_all(call.node, answer.results)
        told = answer.tells_apart and any(t.streams for t in results)
        told = told or any(node in self.averages.mixed for node in paths.values())
        if told and not is_merged(results[0]):
            self.averages.tell_apart(call.node)
        self.put(call.node, new, results)

    def _answer(self, call: Call, ahead: Mapping[Node, Types]) -> Lifted | Refusal:
        """What the rule says; of values that are not lifted yet, by their types ``ahead``."""

        def types(node: Node) -> Types:
            known = self.values[node].types if node in self.values else self.findings.types[node]
            return ahead.get(node, known)

        have = {path: types(n)[0] for path, n in tensor_operands(call) if types(n)}
        shapes = output_shapes(self.program.extents, call.node)
        met = self.meeting.of(call, have)
        context = Context(call, met, shapes, self.sizes, self.program.one_image, self.program.tiles)
        return ask(context, self.findings.rules)

    def _reason(
        self, user: Node, answer: Lifted, operands: Operands, averages: bool, tables: bool
    ) -> str:
        """Why a call that has an answer is unmerged all the same; "" if it is not."""
        have, want = operands.have, operands.want
        merged = user in self.findings.itself and any(map(is_merged, want.values()))
        # Beside totals the table is one too, for a product over the tokens.
        totals = any(map(has_totals, have.values()))
        if merged and (not totals or self.behind.are_told_of_totals(user, answer.results)):
            return self.findings.itself[user]
        if any(hides_images(have[path], want[path]) for path in operands.nodes):
            return "it is not known which image its operand belongs to"
        if not all(map(is_whole, want.values())):
            return "an operand holds rows or columns of the tokens"
        if any(loses_frames(have[path], want[path]) for path in operands.nodes):
            return "an operand has no groups for each frame"
        uneven = self.findings.uneven
        if any(hides_of_all_frames(n, have[p], want[p], uneven) for p, n in operands.nodes.items()):
            return "a mask is about the tokens of all frames"
        rows = self.averages.whole_rows(user, operands)
        if rows:
            self.parted |= rows
            return "it meets rows of places, of each of which one value has merged"
        reason = self.averages.refused(user, operands)
        if tables and not reason:
            reason = self.placed.refused(user, answer.results)
        if reason or not averages or self.averages.leads_on(user):
            return reason
        idle = self.behind.come_back_idle(user, answer.results)
        return "it meets tokens from before a merge and no work is left behind it" if idle else ""

    def _emit(self, call: Call, answer: Lifted, nodes: Mapping[str, Node]) -> Node:
        changed: dict[str, Any] = {**nodes, **answer.arguments}
        if answer.build is not None:
            new = answer.build(RuleBuilder(self), self._rewritten(call.filled(changed)))
        else:
            args, kwargs = unbind(call, changed)
            args, kwargs = self._rewritten(args), self._rewritten(kwargs)
            new = self.graph.create_node("call_function", call.op, args, kwargs, call.node.name)
        new.meta = _carried(call.node)
        return new

    def _rewritten(self, value: Any) -> Any:
        """Captured nodes inside an argument replaced by rewritten ones; others stay."""
        return map_arg(value, lambda n: self.values[n].node if n in self.values else n)

    def _unmerged(self, node: Node, reason: str) -> None:
        """Run ``node`` as captured, on operands with all their tokens."""
        operands = node.all_input_nodes
        replaced = {operand: self.original(operand, node, reason) for operand in operands}
        if any(
            n in self.averages.mixed or any(map(is_merged, self.values[n].types)) for n in operands
        ):
            self.averages.tell_apart(node)
        self.put(node, self.copy(node, replaced), self.findings.types.get(node, ()))

    def _bytes(self, node: Node) -> int:
        """Size of a captured value, per image."""
        value: torch.Tensor = node.meta["val"]
        whole = value.element_size()
        for size in self.program.extents.shape(value):
            whole *= size
        return whole // self.program.batch


@dataclass(frozen=True)
class RuleBuilder:
    """What a rule may use to emit nodes, see ``rules.base.Builder``."""

    lifter: Lifter

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Append a call."""
        return self.lifter.coercer.emit(target, *args, **kwargs)

    def size_along(self, type_: TensorType, axis: int) -> Node | None:
        """Group sizes that broadcast against ``type_`` along ``axis``."""
        return self.lifter.coercer.size_along(type_, axis)

    def key_size_along(self, type_: TensorType, axis: int) -> Node | None:
        """The same for the keys of an attention, unless proportional attention is off."""
        return self.size_along(type_, axis) if self.lifter.prop_attn else None


def _is_deeper(have: TensorType, met: TensorType) -> bool:
    """Has ``have`` fewer tokens than it meets others with?"""
    return any(s.merged > m.merged for s, m in zip(have.streams, met.streams, strict=False))


def _carried(node: Node) -> dict[str, Any]:
    """Where a node comes from; the value of a computed node is the business of ``verify``."""
    own = {"val": node.meta["val"]} if node.op == "get_attr" and "val" in node.meta else {}
    return origin_of(node) | own
