"""The profile of a transformed model: what each step of each layer takes, and what it could."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

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
    module: ToMeModule,
    x: Tensor,
    r: str,
    roofline: Roofline,
    rounds: int = 5,
    warmup: int = 2,
    progress: Callable[[], object] = lambda: None,
) -> Profile:
    """Run the program of ``module`` on ``x`` node by node, eagerly, and sum up by step and layer.

    Args:
        x: a batch ``[B, C, H, W]`` of the size that the module was captured with.
        r: the name of the profile.
        progress: called after each pass.
    """
    located = module.located
    lifted = rewritten_graph(located, module.settings)
    program = located.program
    lifted.graph.set_codegen(program.graph._codegen)
    runnable = GraphModule(module, lifted.graph)
    sizes = verify(runnable, program)
    batch = program.batch if program.static_batch else BATCH
    macs = {node: n * x.shape[0] for node, n in macs_of(lifted.graph, sizes, batch).items()}
    where = places(lifted.graph, lifted.origin, program.graph, located.findings)
    run = TimedRun(runnable, x.device)
    for index in range(warmup + rounds):
        if index == warmup:
            run.forget()
        run.once(x)
        progress()
    lines: dict[Place, list[Line]] = {}
    for node in lifted.graph.nodes:
        if node.op == "call_function":
            place = where[node]
            lines.setdefault(place, []).append(_line(node, place, run, macs.get(node, 0), roofline))
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
