"""From what was located to a rewritten module: plan, lift, lower, verify, attend and fuse."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule

from tome_fx.capturing.calling import Calling
from tome_fx.choosing import chooser
from tome_fx.costing import costs_of, dear_merges, declined, left_out_notes
from tome_fx.graph.segments import forget_segments, segment
from tome_fx.locating import LOCK, Located
from tome_fx.marks import mark
from tome_fx.options import Settings
from tome_fx.passes.attend import attend
from tome_fx.passes.embed import embed
from tome_fx.passes.fuse import fuse
from tome_fx.passes.group import group
from tome_fx.passes.lift import LiftedGraph, lift
from tome_fx.passes.lower import lower
from tome_fx.passes.plan import plan
from tome_fx.passes.recognize import recognize
from tome_fx.passes.verify import verify
from tome_fx.program import MergeSchedule, Program
from tome_fx.report import Report, giga, planning
from tome_fx.reporting import Done, report_of
from tome_fx.schedule import wants
from tome_fx.trust import has_kernels


@dataclass(frozen=True)
class Rewritten:
    """A finished rewrite: the account of it, and the merges that were applied."""

    report: Report
    schedule: MergeSchedule


def rewrite(target: GraphModule, located: Located, settings: Settings, name: str) -> Rewritten:
    """Plan, lift, lower, verify and fuse; ``target`` gets the new graph.

    Merging that does not reach ``settings.min_ratio``, or by the estimate for ``settings.batch``
    not ``settings.min_speedup``, is left out, and the report says so.
    """
    work = _Work(target, located, settings, name)
    with LOCK:
        report, done = work.rewritten(_planned(located, settings))
        if not any(report.schedule) and wants(settings.r):
            return Rewritten(replace(report, skipped=_nothing(report, settings)), done.schedule)
        if not is_worth_it(report, settings):
            return work.unmerged(skipped=_too_dear(report, settings))
        if settings.batch is None or not any(report.schedule):
            return Rewritten(report, done.schedule)
        return _weighed(work, report, done)


def _weighed(work: _Work, report: Report, done: Done) -> Rewritten:
    """The rewrite, without the merges that cost more than they save, or without any."""
    settings = work.settings
    told = costs_of(work.target, done, settings)
    first, best = done.schedule, told.estimate
    notes: tuple[str, ...] = ()
    dear = {} if settings.strict or not settings.min_speedup else dear_merges(told)
    if dear:
        less, done = work.rewritten(_planned(work.located, settings, dear))
        rest = costs_of(work.target, done, settings).estimate
        if any(less.schedule) and rest.speedup > best.speedup:
            report, best, notes = less, replace(rest, left_out=tuple(dear)), left_out_notes(dear)
        elif best.speedup >= settings.min_speedup:
            report, done = work.rewritten(first)
    if best.speedup < settings.min_speedup:
        return work.unmerged(skipped=declined(best, settings), estimate=best)
    report = replace(report, estimate=best, notes=(*report.notes, *notes))
    return Rewritten(report, done.schedule)


def is_worth_it(report: Report, settings: Settings) -> bool:
    """Does merging save enough to be applied?"""
    return not any(report.schedule) or report.flop_ratio >= settings.min_ratio


def _too_dear(report: Report, settings: Settings) -> str:
    ratio = report.flop_ratio
    return (
        f"Merging {'saves too little' if ratio >= 1.0 else 'costs more than it saves'} here and is "
        f"not applied: per image {giga(report.macs_before)}MAC before and "
        f"{giga(report.macs_after)}MAC after, {giga(report.macs_matching)}MAC of that for the "
        f"matching; a ratio of {ratio:.3f}, below min_ratio={settings.min_ratio}. A larger r or a "
        "larger image saves more; min_ratio=0 applies it all the same."
    )


def _nothing(report: Report, settings: Settings) -> str:
    kept = "" if settings.protect is None else f" with protect={settings.protect!r}"
    if not report.blocks:
        step = "Protect fewer tokens, or give larger images" if kept else "Larger images have more"
        return (
            f"Nothing merges: no attention has two tokens that could{kept}. Class tokens and their "
            f"like cannot, nor those that the model picks by their places. {step}."
        )
    told = f"r={settings.r!r}{planning(report)}"
    return f"Nothing merges: {told} takes a token at no layer{kept}. A larger r does."


def _planned(located: Located, settings: Settings, left_out: Container[int] = ()) -> MergeSchedule:
    return plan(
        located.findings,
        settings.r,
        settings.rounding,
        settings.strict,
        settings.every,
        settings.align,
        left_out,
    )


@dataclass(frozen=True)
class _Work:
    """One rewrite: what is rewritten, how, and into which module."""

    target: GraphModule
    located: Located
    settings: Settings
    name: str

    def rewritten(self, schedule: MergeSchedule) -> tuple[Report, Done]:
        """Lift, lower and verify by a schedule."""
        program, findings = self.located.program, self.located.findings
        lifted = _lifted(self.located, self.settings, schedule)
        graph = lower(lifted.graph, self.settings.scatter)
        graph.set_codegen(program.graph._codegen)
        self.target.graph = graph
        sizes = verify(self.target, program)
        done = Done(program, findings, schedule, graph, sizes, lifted)
        report = report_of(done, self.name, self.settings)
        report = _grouped(self.target, report, done)
        report = _attended(self.target, report, done, self.settings.attention)
        report = _fused(self.target, report, done)
        mark(self.target.graph, self.settings.r)
        return _checkpointed(self.target, report, done), done

    def unmerged(self, **told: Any) -> Rewritten:
        """The program without merges, and a report that says why."""
        plain, done = self.rewritten(_planned(self.located, self.settings.with_r(0)))
        return Rewritten(replace(plain, r=self.settings.r, **told), done.schedule)


def _grouped(target: GraphModule, report: Report, done: Done) -> Report:
    """Attentions of stretches of a row in one call, where tokens merge."""
    if not any(report.schedule) or done.program.checkpointed:
        return report  # what is checkpointed is known by its attentions
    before, after = group(done.graph)
    if before == after:
        return report
    target.recompile()
    verify(target, done.program)
    note = f"attention of stretches of a row, those of a length in one call: {before} in {after}"
    return replace(report, notes=(*report.notes, note))


def _attended(target: GraphModule, report: Report, done: Done, form: str) -> Report:
    """Attention with sizes by fused kernels, in the form that is fastest."""
    if form == "written":
        return report
    known, forms = _attend(done.graph, done.program, form)
    if known or set(forms) - {"mask"}:
        target.recompile()
        verify(target, done.program)
    notes = [f"attention with sizes: {n} by {form}" for form, n in forms.items() if form != "mask"]
    if known:
        notes.append(f"written attention that a compiler fuses, sizes included: {known}")
    return replace(report, notes=(*report.notes, *notes))


def _attend(graph: Graph, program: Program, form: str) -> tuple[int, Mapping[str, int]]:
    """How many written attentions are calls now, and how many calls have each form."""
    known = recognize(graph)
    _has_kernels(program)  # whether they can be trusted is found out before one is taken
    return known, attend(graph, chooser(form))


def _fused(target: GraphModule, report: Report, done: Done) -> Report:
    """What kernels of this device do at once, and what suits it otherwise where tokens merge."""
    embedded = _fuse(done.graph, done.program, any(report.schedule))
    target.graph = done.graph
    if not embedded:
        return report
    return replace(report, notes=(*report.notes, "patches are embedded by a matrix product"))


def _fuse(graph: Graph, program: Program, merges: bool) -> bool:
    """Let kernels do several steps at once, in place. Are patches a matrix product now?"""
    kernels = _has_kernels(program)
    fuse(graph, kernels)
    return kernels and merges and bool(embed(graph))


def _checkpointed(target: GraphModule, report: Report, done: Done) -> Report:
    """Gradient checkpointing by blocks, as the model asks for; evaluation keeps nothing anyway."""
    forget_segments(target)
    if not done.program.checkpointed or not target.training:
        return report
    cores = [step.site.cores[0].node for step in done.schedule.steps]
    lifted = {old: new for new, old in done.lifted.origin.items() if new.op == "call_function"}
    made = segment(target, [lifted[core] for core in cores])
    return replace(report, notes=(*report.notes, f"gradients are checkpointed in {made} segments"))


def _lifted(
    located: Located, settings: Settings, schedule: MergeSchedule, maps_only: bool = False
) -> LiftedGraph:
    return lift(
        located.program,
        located.findings,
        schedule,
        settings.prop_attn,
        maps_only,
        settings.remerge,
        settings.matching,
    )


def maps_graph(located: Located, settings: Settings, schedule: MergeSchedule) -> Graph:
    """A graph that returns the index map of each step in place of the model's outputs."""
    lifted = _lifted(located, settings, schedule, maps_only=True)
    graph = lower(lifted.graph, settings.scatter)
    return _inputs_only(fuse(graph, _has_kernels(located.program)), located.program.graph)


def _has_kernels(program: Program) -> bool:
    """Are there kernels for the device of the images?"""
    inputs = [n for n in program.graph.nodes if n.op == "placeholder"]
    # In a program for one image no input has a batch; those that are constants may be anywhere.
    images = [n for n in inputs if n.name in program.batched]
    images = images or [n for n in inputs if n.name not in program.fixed]
    values = (n.meta.get("val") for n in images)
    device = next((value.device for value in values if isinstance(value, torch.Tensor)), None)
    return device is not None and has_kernels(device)


def rewritten_graph(
    located: Located, settings: Settings, schedule: MergeSchedule | None = None
) -> LiftedGraph:
    """The graph of :func:`rewrite` made anew, lowered, with what each of its nodes stands for."""
    lifted = _lifted(located, settings, schedule or _planned(located, settings))
    return replace(lifted, graph=lower(lifted.graph, settings.scatter))


def as_it_runs(graph: Graph, program: Program, settings: Settings, merges: bool) -> None:
    """Give a lowered and verified graph the calls of this device, in place.

    As :func:`rewrite` does, but that stretches of a row attend one by one, and without segments.
    """
    if settings.attention != "written":
        _attend(graph, program, settings.attention)
    _fuse(graph, program, merges)


def _inputs_only(graph: Graph, captured: Graph) -> Graph:
    """The captured calling convention, with a tuple of tensors as the result."""
    from torch.fx.graph import _PyTreeCodeGen
    from torch.utils import _pytree as pytree

    codegen = captured._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        maps = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]
        spec = pytree.tree_structure(tuple(0 for _ in cast(Any, maps)))
        plain = _PyTreeCodeGen(codegen.pytree_info._replace(out_spec=spec))
        graph.set_codegen(codegen.returning(spec) if isinstance(codegen, Calling) else plain)
    return graph
