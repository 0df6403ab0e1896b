"""Lift: rewrite a program so that it computes on merged tokens.

    x1 = add(x, attn)            x1 = add(x, attn)
                                 metric = head_mean(k, 1, 0)
                                 scores = similarity(metric, 1)
                          ->     plan = match(scores, 16, 1)
                                 size = merged_size(plan, None, k)
    y = mlp(norm(x1))            x1' = merge(x1, plan, None, size, 1, front=1)
                                 y = mlp(norm(x1'))

One walk over the program, op by op. Operands that share a stream meet at its deepest level; the
rule of the op says how it runs there; where it refuses, its operands are unmerged and it runs on
the original's shapes. What leaves the program has all its tokens, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx import ops
from tome_fx.coerce import Coercer, Level
from tome_fx.graph.axes import (
    Axis,
    Stream,
    TensorType,
    extent,
    has_stream,
    is_merged,
    map_type,
    streams,
)
from tome_fx.graph.calls import Call, bind, tensor_operands, unbind
from tome_fx.infer import Types, apply, measured_axis, name_all, output_shapes, picked_type
from tome_fx.matching import emit_scores
from tome_fx.program import Coerced, Findings, MergeSchedule, Program, Step
from tome_fx.rules.base import Context, Lifted, Refusal, Rule


@dataclass(frozen=True)
class LiftedGraph:
    """A rewritten graph.

    Attributes:
        graph: not yet lowered.
        origin: the captured node that each rewritten node stands for; inserted nodes are absent.
        coerced: every place where tokens were unmerged, or members of a group averaged again.
    """

    graph: Graph
    origin: Mapping[Node, Node]
    coerced: tuple[Coerced, ...]


def lift(
    program: Program,
    findings: Findings,
    schedule: MergeSchedule,
    rules: Mapping[str, Rule],
    prop_attn: bool = True,
    maps_only: bool = False,
) -> LiftedGraph:
    """Rewrite ``program`` by ``schedule``; the program stays as it is.

    Args:
        prop_attn: False leaves ``log size`` out of softmaxes, for models trained without it.
        maps_only: the result returns the index map of each step and nothing else.
    """
    lifter = _Lifter(program, findings, schedule, rules, prop_attn)
    for node in program.graph.nodes:
        if node.op != "output":
            lifter.visit(node)
        elif not maps_only:
            lifter.output(node)
    if maps_only:
        lifter.graph.output(lifter.maps())
        lifter.graph.eliminate_dead_code()
    return LiftedGraph(lifter.graph, lifter.origin, tuple(lifter.coerced))


@dataclass
class _Value:
    """What a captured node became: a rewritten node, and its type."""

    node: Any
    types: Types


@dataclass
class _Lifter:
    program: Program
    findings: Findings
    schedule: MergeSchedule
    rules: Mapping[str, Rule]
    prop_attn: bool
    graph: Graph = field(default_factory=Graph)
    origin: dict[Node, Node] = field(default_factory=dict)
    coerced: list[Coerced] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coercer = Coercer(self.graph)
        self.values: dict[Node, _Value] = {}
        # What a site was before its own merge: what leaves the program there loses nothing.
        self.before: dict[Node, _Value] = {}
        self.sizes: dict[Node, Axis] = {}
        self.steps = {step.site.node: step for step in self.schedule.steps}
        self.depths: dict[Node, int] = {}
        self.mixed: set[Node] = set()

    # -- one node ---------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        self.coercer.provenance = node
        types = {n: v.types for n, v in self.values.items()}
        picked = picked_type(node, types)
        if node.op in ("placeholder", "get_attr"):
            self._put(node, self._checked(node), self.findings.types[node])
        elif picked is not None:
            source = node.args[0]
            assert isinstance(source, Node)
            row = self.values[source].node
            copy = row[node.args[1]] if isinstance(row, tuple) else self._copy(node, {source: row})
            self._put(node, copy, picked)
        elif isinstance(node.target, torch._ops.OpOverload):
            self._call(bind(node))
        else:
            self._unmerged(node, f"no rule for {node.target}")
        axis = measured_axis(node, self.findings.types)
        if axis is not None:
            self.sizes[node] = axis
        if node in self.steps:
            self._merge_at(self.steps[node])

    def _checked(self, node: Node) -> Node:
        """An input behind a check of its size: the tokens are counted for this size alone."""
        new = self._copy(node, {})
        shape = () if node.op == "get_attr" else node.meta["val"].shape[1:]
        if node.name not in self.program.batched or not all(isinstance(n, int) for n in shape):
            return new
        self.origin[new] = node
        tokens = whole_tokens(self.findings)
        return self.coercer.emit(ops.check_input, new, tuple(shape), str(node.target), tokens)

    def _call(self, call: Call) -> None:
        paths = {p: n for p, n in tensor_operands(call) if self.values[n].types}
        have = {path: self.values[node].types[0] for path, node in paths.items()}
        met = self._meet(have)
        shapes = output_shapes(self.program.extents, call.node)
        context = Context(call, met, shapes, self.sizes)
        answer = apply(context, self.rules)
        if isinstance(answer, Refusal):
            self._unmerged(call.node, answer.reason)
            return
        want = {path: answer.operands.get(path, met[path]) for path in paths}
        self._note_remerges(call.node, paths, have, want)
        nodes = {
            path: self.coercer.coerce(self.values[node].node, have[path], want[path])
            for path, node in paths.items()
        }
        new = self._emit(call, answer, nodes)
        if any(node in self.mixed for node in paths.values()) and not is_merged(answer.results[0]):
            self.mixed.add(call.node)
        self._put(call.node, new, name_all(answer.results, self.findings.streams))

    def _emit(self, call: Call, answer: Lifted, nodes: Mapping[str, Node]) -> Node:
        changed: dict[str, Any] = {**nodes, **answer.arguments}
        if answer.build is not None:
            values = {k: self._plain(v) for k, v in call.arguments.items()}
            self._fill(values, changed)
            new = answer.build(_RuleBuilder(self), values)
        else:
            args, kwargs = unbind(call, changed)
            args, kwargs = self._plain(args), self._plain(kwargs)
            name = call.node.name
            new = self.graph.create_node("call_function", call.op, args, kwargs, name)
        new.meta = _carried(call.node)
        return new

    @staticmethod
    def _fill(values: dict[str, Any], changed: Mapping[str, Any]) -> None:
        for path, value in changed.items():
            name, _, index = path.partition(".")
            if index:
                row = list(values[name])
                row[int(index)] = value
                values[name] = row
            else:
                values[name] = value

    def _plain(self, value: Any) -> Any:
        """Captured nodes inside an argument replaced by rewritten ones; others stay."""
        return map_arg(value, lambda n: self.values[n].node if n in self.values else n)

    # -- levels -----------------------------------------------------------------------------

    def _meet(self, have: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """Operands that share a stream at the deepest level that any of them has."""
        deepest: dict[int, int] = {}
        for type_ in have.values():
            for stream in streams(type_):
                deepest[stream.id] = max(deepest.get(stream.id, 0), stream.level)

        def deepen(stream: Stream) -> Stream:
            return self.coercer.at(stream, deepest[stream.id])

        return {path: map_type(type_, deepen) for path, type_ in have.items()}

    def _unmerged(self, node: Node, reason: str) -> None:
        """Run ``node`` as captured, on operands at level 0."""
        replaced = {}
        for operand in node.all_input_nodes:
            replaced[operand] = self._original(operand, node, reason)
        new = self._copy(node, replaced)
        types = self.findings.types.get(node, ())
        if any(self._was_merged(operand) for operand in node.all_input_nodes):
            self.mixed.add(node)
        self._put(node, new, types)

    def _original(self, operand: Node, user: Node, reason: str) -> Any:
        value = self.before.get(operand) or self.values[operand]
        if not any(is_merged(type_) for type_ in value.types):
            return value.node
        if len(value.types) != 1 or isinstance(value.node, tuple):
            raise AssertionError("merged values with several outputs are taken apart first")
        want = map_type(value.types[0], lambda s: self.coercer.at(_member(s), 0))
        self.coerced.append(Coerced("unmerge", user, reason, self._bytes(operand)))
        return self.coercer.coerce(value.node, value.types[0], want)

    def _was_merged(self, operand: Node) -> bool:
        return operand in self.mixed or any(is_merged(t) for t in self.values[operand].types)

    def _note_remerges(
        self,
        user: Node,
        paths: Mapping[str, Node],
        have: Mapping[str, TensorType],
        want: Mapping[str, TensorType],
    ) -> None:
        for path, node in paths.items():
            if node in self.mixed and not is_merged(have[path]) and is_merged(want[path]):
                reason = "members that a mixing op told apart are averaged again"
                self.coerced.append(Coerced("merge", user, reason, self._bytes(node)))

    def _bytes(self, node: Node) -> int:
        value = node.meta["val"]
        whole = 1
        for size in self.program.extents.shape(value):
            whole *= size
        return whole * value.element_size() // self.program.batch

    # -- sites ------------------------------------------------------------------------------

    def _merge_at(self, step: Step) -> None:
        node, stream_id = step.site.node, step.site.stream
        if not step.removed:
            self.depths[node] = self.coercer.depth(stream_id)
            return
        value = self.values[node]
        now = map_type(value.types[0], lambda s: self._deepest(s, stream_id))
        held = self.coercer.coerce(value.node, value.types[0], now)
        keys = [self._key(core.key, stream_id) for core in step.site.cores]
        channels = [core.channel for core in step.site.cores]
        scores, parity, like = emit_scores(self.coercer, keys, channels, now, stream_id)
        merge_plan = self.coercer.emit(ops.match, scores, step.removed, parity)
        rows = self.coercer.levels.setdefault(stream_id, [])
        before = rows[-1] if rows else None
        size = self.coercer.emit(ops.merged_size, merge_plan, before and before.size, like)
        removed = step.removed + (before.merged if before else 0)
        rows.append(Level(merge_plan, size, removed))
        self.depths[node] = len(rows)
        deeper = map_type(now, lambda s: self._deepest(s, stream_id))
        self.before[node] = _Value(held, (now,))
        self._put(node, self.coercer.coerce(held, now, deeper), (deeper,))

    def _key(self, key: Node, stream_id: int) -> tuple[Node, TensorType]:
        value = self.values[key]
        now = map_type(value.types[0], lambda s: self._deepest(s, stream_id))
        return self.coercer.coerce(value.node, value.types[0], now), now

    def _deepest(self, stream: Stream, stream_id: int) -> Stream:
        if stream.id != stream_id:
            return stream
        return self.coercer.at(stream, self.coercer.depth(stream_id))

    # -- the end ----------------------------------------------------------------------------

    def output(self, node: Node) -> None:
        self.coercer.provenance = node
        replaced = {
            operand: self._original(operand, node, "it leaves the program")
            for operand in node.all_input_nodes
        }
        self.graph.output(map_arg(node.args[0], lambda n: replaced[n]))

    def maps(self) -> tuple[Node, ...]:
        """For each step the slot of each original token of its stream, ``[B, N]``."""
        image = next(n for n in self.program.graph.nodes if n.name in self.program.batched)
        result = []
        for step in self.schedule.steps:
            stream, depth = step.site.stream, self.depths[step.site.node]
            if depth:
                result.append(self.coercer.assignment(stream, depth))
            else:
                like = self.values[image].node
                result.append(self.coercer.emit(ops.identity, like, step.before))
        return tuple(result)

    def _copy(self, node: Node, replaced: Mapping[Node, Any]) -> Node:
        def swap(operand: Node) -> Any:
            return replaced.get(operand, self.values[operand].node)

        args, kwargs = map_arg(node.args, swap), map_arg(node.kwargs, swap)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta = _carried(node)
        return new

    def _put(self, node: Node, new: Any, types: Types) -> None:
        self.values[node] = _Value(new, types)
        if isinstance(new, Node):
            self.origin.setdefault(new, node)


@dataclass(frozen=True)
class _RuleBuilder:
    """What a rule may use to emit nodes, see ``rules.base.Builder``."""

    lifter: _Lifter

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        return self.lifter.coercer.emit(target, *args, **kwargs)

    def size_along(self, type_: TensorType, axis: int) -> Node | None:
        return self.lifter.coercer.size_along(type_, axis)

    def key_size_along(self, type_: TensorType, axis: int) -> Node | None:
        return self.size_along(type_, axis) if self.lifter.prop_attn else None


def whole_tokens(findings: Findings) -> int:
    """Tokens on the axis of the first site, the protected ones included; 0 without a site."""
    for site in findings.sites:
        type_ = findings.types[site.node][0]
        return next(extent(axis) for axis in type_.axes if has_stream(axis))
    return 0


def _member(stream: Stream) -> Stream:
    return replace(stream, extensive=False)


def _carried(node: Node) -> dict[str, Any]:
    """Where a node comes from; the value of a computed node is the business of ``verify``."""
    keys = ("stack_trace", "nn_module_stack", *(("val",) if node.op == "get_attr" else ()))
    return {key: node.meta[key] for key in keys if key in node.meta}
