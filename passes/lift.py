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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx import ops
from tome_fx.capturing.questions import line_of_mode
from tome_fx.graph.axes import Atom
from tome_fx.graph.extents import settled
from tome_fx.lifting.frames import frame_by_frame
from tome_fx.lifting.lifter import Lifter
from tome_fx.lifting.merging import Merging
from tome_fx.options import Remerge
from tome_fx.own_matching import Function, OwnMatching
from tome_fx.program import Coerced, Findings, MergeSchedule, Program, Step

aten = torch.ops.aten


@dataclass(frozen=True)
class LiftedGraph:
    """A rewritten graph.

    Attributes:
        graph: not yet lowered.
        origin: the captured node that each rewritten node stands for; inserted nodes are absent.
        coerced: every place where tokens were unmerged, or members of a group averaged again.
        tokens: on the token axis at each site, before its merge.
    """

    graph: Graph
    origin: Mapping[Node, Node]
    coerced: tuple[Coerced, ...]
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return str(self.graph)


def lift(
    program: Program,
    findings: Findings,
    schedule: MergeSchedule,
    prop_attn: bool = True,
    maps_only: bool = False,
    remerge: Remerge = "mean",
    matching: Function | None = None,
) -> LiftedGraph:
    """Rewrite ``program`` by ``schedule`` and the rules that ``findings`` come from.

    The program stays as it is.

    Args:
        prop_attn: False leaves ``log size`` out of softmaxes, for models trained without it.
        maps_only: the result returns the index map of each step and nothing else.
        remerge: what becomes of values that an op told apart within a group, where they come back
            to their source: ``mean`` averages them, ``never`` gives all tokens back there.
        matching: a function of the user that chooses what merges.

    Raises:
        MatchingError: ``matching`` cannot be asked at some site.
    """
    own = None if matching is None else OwnMatching(matching)
    walk = _Walk(Lifter(program, findings, prop_attn, remerge), schedule, own)
    last = next((n for n in reversed(program.graph.nodes) if n.op == "placeholder"), None)
    for node in program.graph.nodes:
        walk.lifter.coercer.provenance = node
        walk.visit(node, maps_only)
        if node is last and program.unlike and not maps_only:
            line = line_of_mode(program.asked, program.unlike == (ops.INFERENCE,))
            walk.lifter.coercer.emit(ops.check_mode, program.mode, program.unlike, line)
    lifter = walk.lifter
    return LiftedGraph(
        lifter.graph, lifter.origin, tuple(lifter.coerced), tuple(walk.merging.tokens)
    )


@dataclass
class _Walk:
    """The order of things: inputs are checked, calls lifted, sites merged, outputs unmerged."""

    lifter: Lifter
    schedule: MergeSchedule
    own: OwnMatching | None

    def __post_init__(self) -> None:
        self.merging = Merging(self.lifter, self.own)
        self.first: tuple[Node, str] | None = None  # the first input with a batch, and its name
        self.steps: dict[Node, list[Step]] = {}
        for step in self.schedule.steps:
            self.steps.setdefault(step.site.node, []).append(step)

    def visit(self, node: Node, maps_only: bool) -> None:
        lifter = self.lifter
        if node.op == "placeholder":
            lifter.put(node, self._checked(node), lifter.findings.types[node])
        elif node in lifter.values:
            pass  # it was needed ahead of its turn
        elif node.op == "get_attr":
            lifter.put(node, lifter.copy(node, {}), lifter.findings.types[node])
        elif node.op == "output":
            lifter.graph.output(self._maps() if maps_only else self._outputs(node))
        else:
            lifter.lift(node)
        if node in self.steps:
            self.merging.merge(self.steps[node])

    def _checked(self, node: Node) -> Node:
        """An input behind a check of its size: the tokens are counted for this size alone."""
        new = self.lifter.copy(node, {})
        program = self.lifter.program
        if not isinstance(node.meta.get("val"), Tensor):
            # A number or None is part of the program: another one would change it.
            self.lifter.coercer.emit(ops.check_constant, new, node.meta.get("val"), node.target)
            return new
        batched, name = node.name in program.batched, str(node.target)
        if node.name in program.fixed:
            self.lifter.coercer.emit(ops.check_fixed, new, program.fixed[node.name], name)
            return new
        shape = tuple(map(settled, node.meta["val"].shape))[batched:]
        if program.guarded or not all(isinstance(size, int) for size in shape):
            return new
        emit = self.lifter.coercer.emit
        if not shape:  # labels or times, one for each image
            return self._with_as_many_rows(new, name) if batched else new
        self.lifter.origin[new] = node
        if not batched:
            return emit(ops.check_whole, new, shape, name)
        batch: tuple[int | None, ...] = (program.batch,) if program.static_batch else ()
        if (program.least, program.most, program.times) != (1, None, 1):
            batch = (None, program.least, program.most, program.times)
        tokens = self.lifter.findings.tokens
        new = emit(ops.check_input, new, shape, name, tokens, *batch)
        return self._with_as_many_rows(new, name)

    def _with_as_many_rows(self, new: Node, name: str) -> Node:
        """An input with a batch behind a check that it is that of the first such input."""
        emit, program = self.lifter.coercer.emit, self.lifter.program
        if self.first is None:
            self.first = new, name
        elif not program.static_batch:
            new = emit(ops.check_rows, new, self.first[0], name, self.first[1])
        return new

    def _outputs(self, node: Node) -> Any:
        replaced = {
            operand: self.lifter.original(operand, node, "it leaves the program")
            for operand in node.all_input_nodes
        }
        return map_arg(node.args[0], lambda n: replaced[n])

    def _maps(self) -> tuple[Node, ...]:
        """For each step the slot of each original token of its stream, ``[B, N]``.

        ``[B, F, N]`` where each of ``F`` frames has groups of its own.
        """
        coercer = self.lifter.coercer
        like, result = self._rows(), []
        for step in self.schedule.steps:
            stream = step.site.stream
            depth = self.merging.depths[step.site.node, stream]
            per = self.lifter.findings.streams[stream].per
            frames = math.prod(atom.extent for atom in per if isinstance(atom, Atom))
            tokens = self.lifter.findings.mergeable(step.site)
            if depth:
                each = coercer.levels.assignment(stream, depth)
                each = frame_by_frame(coercer, each, per, tokens) if per else each
            else:
                each = coercer.emit(ops.identity, like, tokens)
                if per:
                    each = coercer.emit(aten.unsqueeze.default, each, 1)
                    each = coercer.emit(aten.expand.default, each, [-1, frames, -1])
            result.append(each)
        return tuple(result)

    def _rows(self) -> Node:
        """A value with a row for each image."""
        lifter = self.lifter
        inputs = [n for n in lifter.program.graph.nodes if n.op == "placeholder"]
        images = next((n for n in inputs if n.name in lifter.program.batched), None)
        if images is not None:
            rows: Node = lifter.values[images].node
            return rows
        whole = next(n for n in inputs if isinstance(n.meta.get("val"), Tensor))
        return lifter.coercer.emit(aten.unsqueeze.default, lifter.values[whole].node, 0)
