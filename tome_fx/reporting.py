"""Build a report from what the passes found and did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.finding.frames import frame_notes
from tome_fx.finding.masks import all_masks_of, masks_of, may_hide, padding_masks, pairs_of
from tome_fx.finding.parts import last_parts_of
from tome_fx.graph.axes import (
    Axis,
    axis_of,
    extent,
    has_batch,
    has_stream,
    holds,
    is_uniform,
    pieces,
    streams_of_axis,
)
from tome_fx.graph.extents import Extents, is_truth
from tome_fx.graph.provenance import module_path, source_line
from tome_fx.macs import macs_of
from tome_fx.options import Settings
from tome_fx.own_matching import OwnMatching, name_of
from tome_fx.passes.lift import LiftedGraph
from tome_fx.passes.verify import BATCH
from tome_fx.program import (
    Coerced,
    Core,
    Findings,
    MergeSchedule,
    Program,
    Site,
    Step,
    StreamDef,
)
from tome_fx.program_notes import notes_of
from tome_fx.report import Block, NearMiss, Protected, Report, Unmerge


@dataclass(frozen=True)
class Done:
    """Everything that one transform knows at its end."""

    program: Program
    findings: Findings
    schedule: MergeSchedule
    graph: Graph
    sizes: Extents
    lifted: LiftedGraph


def report_of(done: Done, model: str, settings: Settings) -> Report:
    """The report of a transform."""
    batch = done.program.images_near(BATCH)
    before = macs_of(done.program.graph, done.sizes, batch)
    after = macs_of(done.graph, done.sizes, batch)
    matching = sum(n for node, n in after.items() if _matches(node))
    return Report(
        model=model,
        capture=done.program.how,
        r=settings.r,
        schedule=tuple(step.removed for step in done.schedule.steps),
        blocks=tuple(_blocks(done, before, after)),
        protected=tuple(_protected(done.findings)),
        macs_before=sum(before.values()),
        macs_after=sum(after.values()),
        macs_matching=matching,
        unmerges=tuple(_unmerge(item) for item in done.lifted.coerced),
        near_misses=tuple(_misses(done.findings)),
        notes=tuple(_notes(done, settings)),
        every=settings.every,
        align=settings.align,
        aligned=done.schedule.align,
    )


def _matches(node: Node) -> bool:
    return node.target is ops.similarity or isinstance(node.target, OwnMatching)


def _blocks(done: Done, before: Mapping[Node, int], after: Mapping[Node, int]) -> Iterable[Block]:
    order = {node: i for i, node in enumerate(done.program.graph.nodes)}
    ends = [order[step.site.mlp.end if step.site.mlp else step.site.node]
            for step in done.schedule.steps]  # fmt: skip
    start = _first_streamed(done, order)
    origin = done.lifted.origin
    lifted = {origin[node]: n for node, n in after.items() if node in origin}
    for index, step in enumerate(done.schedule.steps):
        inside = [n for n in order if start <= order[n] <= ends[index]]
        start = ends[index] + 1
        tokens = done.lifted.tokens[index]
        yield Block(
            index=index,
            attention=module_path(step.site.cores[0].node),
            mlp=step.site.mlp.module if step.site.mlp else "",
            kind=step.site.cores[0].kind,
            tokens_in=tokens,
            tokens_out=tokens - step.removed,
            removed=step.removed,
            macs_before=sum(before.get(n, 0) for n in inside),
            macs_after=sum(lifted.get(n, 0) for n in inside),
        )


def _first_streamed(done: Done, order: Mapping[Node, int]) -> int:
    for node, index in order.items():
        types = done.findings.types.get(node, ())
        if any(has_stream(axis) for type_ in types for axis in type_.axes):
            return index + 1  # what makes the tokens is no block's
    return 0


def _protected(findings: Findings) -> Iterable[Protected]:
    """Tokens at the ends of each row of them, and those that join them at a later layer."""
    streams = {stream.id: stream for stream in findings.streams}
    told: set[int] = set()
    for first in findings.sites:
        if first.stream in told or first.stream not in streams:
            continue
        row = f"the tokens of {module_path(first.node) or first.node.name}"
        of_others = f", of {row}" if told else ""
        of_one = [item for item in enumerate(findings.sites) if item[1].stream == first.stream]
        for item in _of_stream(streams[first.stream], of_one, findings):
            yield replace(item, reason=item.reason + of_others)
        # Streams side by side in one row have the same ends.
        told |= {s.id for _, site in of_one for s in streams_of_axis(_row(site, findings))}


def _of_stream(
    stream: StreamDef, sites: Sequence[tuple[int, Site]], findings: Findings
) -> Iterable[Protected]:
    seen = {"front": 0, "back": 0}
    for place, (layer, site) in enumerate(sites):
        ends = zip(_beside(site, findings), (stream.front, stream.back), seen, strict=True)
        for count, own, where in ends:
            joined = count - own
            if joined > seen[where]:
                since = f" at layer {layer}" if place else ""
                reason = f"joined to the tokens by a concatenation{since}"
                yield Protected(joined - seen[where], where, reason)
            seen[where] = max(seen[where], joined)
            if own and not place:
                yield Protected(own, where, "; ".join(stream.reasons))


def _row(site: Site, findings: Findings) -> Axis:
    """The axis, or the factor of it, that a site's tokens are on with what is beside them."""
    axis = axis_of(findings.types[site.node][0], site.stream)
    return next((factor,) for factor in axis if holds((factor,), site.stream))


def _beside(site: Site, findings: Findings) -> tuple[int, int]:
    """How many tokens stand before and behind the stream of a site."""
    front, back, passed = 0, 0, False
    for part in pieces(*_row(site, findings)):
        if has_stream(part):
            passed = True
        elif passed:
            back += extent(part)
        else:
            front += extent(part)
    return front, back


def _unmerge(item: Coerced) -> Unmerge:
    node = item.node
    op = str(node.target) if node.op != "output" else "output"
    return Unmerge(
        op, module_path(node), source_line(node), item.reason, item.bytes_per_image, item.what
    )


def _misses(findings: Findings) -> Iterable[NearMiss]:
    for miss in findings.misses:
        yield NearMiss(miss.what, module_path(miss.node), source_line(miss.node), miss.reason)


def _mask_varies(core: Core, findings: Findings, padding: frozenset[Node]) -> bool:
    """Does a mask of an attention tell the tokens of each image apart, and is none of padding?"""
    for mask, *_ in (last for own in masks_of(core) for last in last_parts_of(*own, padding)):
        # What is added to logits may be a bias from the image, which is averaged: no mask.
        if mask in padding or (core.kind != "sdpa" and not is_truth(mask)):
            continue
        types = findings.types.get(mask, ())
        axes = types[0].axes if types else ()
        inner = (axis for axis in axes if not has_batch(axis))
        told = any(not is_uniform(axis) and extent(axis) > 1 for axis in inner)
        if told and any(map(has_batch, axes)) and may_hide(mask):
            return True
    return False


def _asked(step: Step, settings: Settings) -> str:
    """What a layer was to remove: by ``r``, or with what other layers left to it."""
    own = settings.every == 1 and settings.align == 1
    return f"r={step.asked}" if own else f"{step.asked} tokens asked for,"


def _notes(done: Done, settings: Settings) -> Iterable[str]:
    for index, step in enumerate(done.schedule.steps):
        if step.asked > step.before // 2:
            yield (
                f"layer {index}: {_asked(step, settings)} clamped to {step.before // 2}, "
                f"half of the {step.before} tokens that may merge there"
            )
    if settings.matching is not None and any(step.removed for step in done.schedule.steps):
        yield f"what merges is chosen by {name_of(settings.matching)}"
    yield from frame_notes(done.findings)
    yield from _mask_notes(done, settings.matching is not None)
    yield from notes_of(done.program)


def _mask_notes(done: Done, own_matching: bool) -> Iterable[str]:
    padding = padding_masks(done.findings, done.program, views=True)
    cores = [core for site in done.findings.sites for core in site.cores]
    if any(_mask_varies(core, done.findings, padding) for core in cores):
        yield (
            "an attention mask differs from image to image and within it; matching looks at masks "
            "of padding alone, so a group may hold tokens that this one tells apart"
        )
    if any(mask in padding for c in cores if c.kind == "inner" for mask, _ in masks_of(c)):
        yield (
            "an attention inside a residual value has a mask of padding, which is read as one "
            "about the tokens of that value in their order"
        )
    masks = ((part.node, core) for core in cores for part in all_masks_of(core) if part.own > 1)
    if any(pairs_of(*each, done.findings, done.program) is not None for each in masks):
        yield (
            "a mask says of each image which tokens see which; those that it treats alike merge "
            "first, others only where no such pairs are left"
        )
    if done.findings.uneven and own_matching:
        yield (
            "a mask of the model hides some tokens from some others, which what chooses does not "
            "see; a group sees what its representative sees, which is not exact where its members "
            "differ in that"
        )
    elif done.findings.uneven:
        yield (
            "a mask of the model hides some tokens from some others; those that it treats alike "
            "merge first, unless it differs from head to head, and a group sees what its "
            "representative sees, which is not exact where its members differ in that"
        )
