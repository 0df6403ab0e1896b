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
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx import ops
from tome_fx.graph.axes import TensorType
from tome_fx.lifting.coerce import Level
from tome_fx.lifting.lifter import Lifter, Value
from tome_fx.lifting.matching import emit_scores
from tome_fx.program import Coerced, Findings, MergeSchedule, Program, Step
from tome_fx.rules.base import Rule


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

    def __str__(self) -> str:
        return str(self.graph)


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
    walk = _Walk(Lifter(program, findings, rules, prop_attn), schedule)
    for node in program.graph.nodes:
        walk.lifter.coercer.provenance = node
        walk.visit(node, maps_only)
    lifter = walk.lifter
    return LiftedGraph(lifter.graph, lifter.origin, tuple(lifter.coerced))


@dataclass
class _Walk:
    """The order of things: inputs are checked, calls lifted, sites merged, outputs unmerged."""

    lifter: Lifter
    schedule: MergeSchedule
    depths: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = {step.site.node: step for step in self.schedule.steps}

    def visit(self, node: Node, maps_only: bool) -> None:
        lifter = self.lifter
        if node.op == "placeholder":
            lifter.put(node, self._checked(node), lifter.findings.types[node])
        elif node.op == "get_attr":
            lifter.put(node, lifter.copy(node, {}), lifter.findings.types[node])
        elif node.op == "output":
            lifter.graph.output(self._maps() if maps_only else self._outputs(node))
        else:
            lifter.lift(node)
        if node in self.steps:
            self._merge(self.steps[node])

    def _checked(self, node: Node) -> Node:
        """An input behind a check of its size: the tokens are counted for this size alone."""
        new = self.lifter.copy(node, {})
        program = self.lifter.program
        if not isinstance(node.meta.get("val"), Tensor):
            # A number or None is part of the program: another one would change it.
            self.lifter.coercer.emit(ops.check_constant, new, node.meta.get("val"), node.target)
            return new
        shape = tuple(node.meta["val"].shape[1:]) if node.name in program.batched else ()
        if not shape or not all(isinstance(size, int) for size in shape):
            return new
        self.lifter.origin[new] = node
        tokens = self.lifter.findings.tokens
        batch = (program.batch,) if program.static_batch else ()
        name = str(node.target)
        return self.lifter.coercer.emit(ops.check_input, new, shape, name, tokens, *batch)

    def _merge(self, step: Step) -> None:
        """Match by the keys of the site's cores, and go one level deeper."""
        lifter, node, stream = self.lifter, step.site.node, step.site.stream
        coercer = lifter.coercer
        if step.removed:
            value = lifter.values[node]
            now = lifter.deepest(value.types[0], stream)
            held = coercer.coerce(value.node, value.types[0], now)
            keys = [self._key(core.key, stream) for core in step.site.cores]
            channels = [core.channel for core in step.site.cores]
            scores, parity, like = emit_scores(coercer, keys, channels, now, stream)
            plan = coercer.emit(ops.match, scores, step.removed, parity)
            rows = coercer.levels.setdefault(stream, [])
            before = rows[-1] if rows else None
            size = coercer.emit(ops.merged_size, plan, before.size if before else None, like)
            rows.append(Level(plan, size, step.removed + (before.merged if before else 0)))
            deeper = lifter.deepest(now, stream)
            lifter.before[node] = Value(held, (now,))
            lifter.put(node, coercer.coerce(held, now, deeper), (deeper,))
        self.depths[node] = coercer.depth(stream)

    def _key(self, key: Node, stream: int) -> tuple[Node, TensorType]:
        value = self.lifter.values[key]
        now = self.lifter.deepest(value.types[0], stream)
        return self.lifter.coercer.coerce(value.node, value.types[0], now), now

    def _outputs(self, node: Node) -> Any:
        replaced = {
            operand: self.lifter.original(operand, node, "it leaves the program")
            for operand in node.all_input_nodes
        }
        return map_arg(node.args[0], lambda n: replaced[n])

    def _maps(self) -> tuple[Node, ...]:
        """For each step the slot of each original token of its stream, ``[B, N]``."""
        lifter = self.lifter
        image = next(n for n in lifter.program.graph.nodes if n.name in lifter.program.batched)
        like, result = lifter.values[image].node, []
        for step in self.schedule.steps:
            stream, depth = step.site.stream, self.depths[step.site.node]
            if depth:
                result.append(lifter.coercer.assignment(stream, depth))
            else:
                result.append(lifter.coercer.emit(ops.identity, like, step.before))
        return tuple(result)
