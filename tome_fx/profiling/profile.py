"""The profile of a transformed model: what each step of each layer takes, and what it could."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from tome_fx.macs import macs_of
from tome_fx.module import ToMeModule
from tome_fx.passes.verify import BATCH, verify
from tome_fx.pipeline import rewritten_graph
from tome_fx.profiling.roofline import Roofline
from tome_fx.profiling.steps import STEPS, Place, places
from tome_fx.profiling.timed import TimedRun


@dataclass(frozen=True)
class Line:
    """One step of one layer, for a whole batch.

    Attributes:
        nodes: how many calls it is made of.
        ms: the sum of the medians of their times, each run alone.
        macs: multiply-accumulates of its products; what is not a product has none.
        moved: the least bytes that its calls move, each on its own.
        bound_ms: the least time for these MACs and bytes on this machine, call by call.
    """

    layer: str
    step: str
    nodes: int
    ms: float
    macs: int
    moved: int
    bound_ms: float


@dataclass(frozen=True)
class Profile:
    """All steps of all layers. ``whole_ms`` is the sum over them."""

    r: str
    lines: tuple[Line, ...]

    @property
    def whole_ms(self) -> float:
        """Milliseconds of all steps together."""
        return sum(line.ms for line in self.lines)

    def by_step(self) -> tuple[Line, ...]:
        """One line a step over all layers, in the order of STEPS; steps without a call left out."""
        rows = [(step, [x for x in self.lines if x.step == step]) for step in STEPS]
        return tuple(_sum("all", step, lines) for step, lines in rows if lines)


def profile(
    modules: Mapping[str, ToMeModule],
    x: Tensor,
    roofline: Roofline,
    rounds: int = 5,
    warmup: int = 2,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Profile, ...]:
    """Run programs on ``x`` node by node, eagerly and in turn, and sum up by step and layer.

    A kernel that does several steps counts as the one that it is named after: a merge with the
    sum in front of it and the norm behind it as merging.

    Args:
        modules: what to profile, by the name of r.
        x: a batch ``[B, C, H, W]`` of the size that the modules were captured with.
        progress: called after each pass over one of them.
    """
    programs = {r: _program(module, x) for r, module in modules.items()}
    for index in range(warmup + rounds):
        for program in programs.values():
            if index == warmup:
                program.run.forget()
            program.run.once(x)
            progress()
    return tuple(_summed(r, program, roofline) for r, program in programs.items())


@dataclass(frozen=True)
class _Program:
    """A program ready to run, with the place and the MACs of each of its nodes."""

    run: TimedRun
    places: Mapping[Node, Place]
    macs: Mapping[Node, int]


def _program(module: ToMeModule, x: Tensor) -> _Program:
    located = module.located
    lifted = rewritten_graph(located, module.settings)
    program = located.program
    lifted.graph.set_codegen(program.graph._codegen)
    sizes = verify(GraphModule(module, lifted.graph), program)
    batch = program.batch if program.static_batch else BATCH
    macs = {node: n * x.shape[0] for node, n in macs_of(lifted.graph, sizes, batch).items()}
    find = partial(places, captured=program.graph, findings=located.findings)
    lowered = find(lifted.graph, lifted.origin)
    same = _kept(module.graph, lifted.graph)
    where = find(module.graph, {n: lifted.origin[o] for n, o in same.items() if o in lifted.origin})
    return _Program(TimedRun(module, x.device), where, _shared(macs, lowered, same, where))


def _kept(running: Graph, lowered: Graph) -> dict[Node, Node]:
    """What is in the program as it runs and as it was lowered: kernels may do several steps."""
    before = {node.name: node for node in lowered.nodes}
    pairs = {node: before[node.name] for node in running.nodes if node.name in before}
    return {new: old for new, old in pairs.items() if new.target == old.target}


def _shared(
    macs: Mapping[Node, int],
    lowered: Mapping[Node, Place],
    same: Mapping[Node, Node],
    where: Mapping[Node, Place],
) -> dict[Node, int]:
    """MACs by call: those of calls that are gone go to what stands in their place now."""
    found = {new: macs[old] for new, old in same.items() if old in macs}
    left: Counter[Place] = Counter()
    for node, count in macs.items():
        left[lowered[node]] += count
    for node, count in found.items():
        left[where[node]] -= count
    for node, place in where.items():
        if node not in same and node.op == "call_function":
            found[node] = left.pop(place, 0)
    return found


def _summed(r: str, program: _Program, roofline: Roofline) -> Profile:
    lines: dict[Place, list[Line]] = {}
    for node, place in program.places.items():
        if node.op == "call_function":
            line = _line(node, place, program.run, program.macs.get(node, 0), roofline)
            lines.setdefault(place, []).append(line)
    return Profile(r, tuple(_sum(p.layer, p.step, found) for p, found in lines.items()))


def _line(node: Node, place: Place, run: TimedRun, macs: int, roofline: Roofline) -> Line:
    seconds, moved = statistics.median(run.seconds[node]), run.moved[node]
    bound = roofline.seconds(macs, moved) * 1e3
    return Line(place.layer, place.step, 1, seconds * 1e3, macs, moved, bound)


def _sum(layer: str, step: str, lines: Iterable[Line]) -> Line:
    rows = list(lines)
    return Line(
        layer,
        step,
        sum(row.nodes for row in rows),
        sum(row.ms for row in rows),
        sum(row.macs for row in rows),
        sum(row.moved for row in rows),
        sum(row.bound_ms for row in rows),
    )
