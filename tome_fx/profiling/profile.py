"""The profile of a transformed model: what each step of each layer takes, and what it could."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.fx import GraphModule, Node

from tome_fx.macs import macs_of
from tome_fx.module import ToMeModule
from tome_fx.passes.verify import BATCH, verify
from tome_fx.pipeline import as_it_runs, rewritten_graph
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
    sum in front of it and the norm behind it as merging. Stretches of a row are shown one by one,
    also where they attend in one call, and what is checkpointed as if it were not.

    Args:
        modules: what to profile, by the name of r.
        x: a batch ``[B, C, H, W]`` of the size that the modules were captured with, or what else
            is their only input.
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
    # Without what was planned and left out.
    lifted = rewritten_graph(located, module.settings, module._rewritten.schedule)
    program, graph = located.program, lifted.graph
    graph.set_codegen(program.graph._codegen)
    runnable = GraphModule(module, graph)
    sizes = verify(runnable, program)
    batch = program.images_near(BATCH)
    images = x.shape[0] if program.batched else 1  # patches of one image are rows as well
    macs = {node: n * images for node, n in macs_of(graph, sizes, batch).items()}
    find = partial(places, captured=program.graph, findings=located.findings)
    lowered = find(graph, lifted.origin)
    as_it_runs(graph, program, module.settings, any(module.schedule))
    runnable.recompile()
    where = find(graph, lifted.origin)
    return _Program(TimedRun(runnable, x.device), where, _shared(macs, lowered, where))


def _shared(
    macs: Mapping[Node, int], lowered: Mapping[Node, Place], where: Mapping[Node, Place]
) -> dict[Node, int]:
    """MACs by call: those of calls that are gone go to what stands in their place now."""
    found = {node: count for node, count in macs.items() if node in where}
    left = Counter[Place]()
    for node, count in macs.items():
        if node not in where:
            left[lowered[node]] += count
    calls = [node for node in where if node.op == "call_function"]
    made = [node for node in calls if node not in lowered]
    for place, count in left.items():
        near = [node for node in (*made, *calls) if where[node] == place]
        if count:
            heir = (near or made or calls)[0]
            found[heir] = found.get(heir, 0) + count
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
