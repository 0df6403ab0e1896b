"""Plan: turn ``r`` into a number of tokens to remove at each site.

    r=16, sites at 196 tokens            ->  196 -16-> 180 -16-> 164 -16-> 148 ...
    the same with every=3                ->  196 -0-> 196 -48-> 148 -0-> 148 ...
    the same with align=8 and one class  ->  196 -13-> 183 -24-> 159 -16-> 143 ...

The schedule counts the sites in program order: the attention blocks where a merge can go. What a
site cannot give is clamped to half of its unprotected tokens (section 3.2). Each stream is planned
by itself, and so is each branch of one, from where it parts.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import Tensor
from torch.fx import Node

from tome_fx.errors import ConfigError
from tome_fx.graph.ends import tokens_of
from tome_fx.grouping import Align, auto_align, grouped, plain
from tome_fx.program import Findings, MergeSchedule, Site, Step
from tome_fx.schedule import Rounding, asked, is_list, share


def plan(
    findings: Findings,
    r: object,
    rounding: Rounding = "truncate",
    strict: bool = False,
    every: int = 1,
    align: Align = 1,
    left_out: Container[int] = (),
) -> MergeSchedule:
    """A step for each site of ``findings``.

    Args:
        every, align: see :func:`tome_fx.grouping.grouped`; ``"auto"`` goes by the device and dtype
            of the keys.
        left_out: sites without a merge; so are the others of their group.

    Raises:
        ConfigError: ``r`` is outside its range, or under ``strict`` it had to be clamped or a list
            of it changed.
    """
    wanted = _wanted(r, findings.sites, rounding)
    multiple = _auto(findings) if align == "auto" else align
    steps: dict[int, Step] = {}
    for stream in dict.fromkeys(site.stream for site in findings.sites):
        own = [i for i, site in enumerate(findings.sites) if site.stream == stream]
        first = findings.sites[own[0]]
        tokens = findings.mergeable(first)
        protected = tokens_of(findings.types[first.node][0], stream) - tokens
        left: dict[Node | None, int] = {None: tokens}
        for line in _lines(findings.sites, own):
            skipped = {place // every for place, i in enumerate(line) if i in left_out}
            idle = [place for place in range(len(line)) if place // every in skipped]
            start = left[findings.sites[line[0]].after]
            ideal = plain([wanted[i] for i in line], start, share(r), idle)
            merges = grouped(ideal, every, multiple, protected)
            for i, merge in zip(line, merges, strict=True):
                site = findings.sites[i]
                left[site.node] = merge.before - merge.removed
                steps[i] = Step(site, merge.before, merge.removed, merge.asked)
    schedule = MergeSchedule(tuple(steps[i] for i in sorted(steps)), multiple)
    if strict:
        _check(schedule, wanted if is_list(r) else None)
    return schedule


def _lines(sites: Sequence[Site], own: Sequence[int]) -> list[list[int]]:
    """The sites of a stream as rows of one behind the other; a branch is a row of its own."""
    lines: list[list[int]] = []
    for i in own:
        line = next((line for line in lines if sites[line[-1]].node is sites[i].after), None)
        if line is None:
            lines.append([i])
        else:
            line.append(i)
    return lines


def _wanted(r: object, sites: Sequence[Site], rounding: Rounding) -> tuple[int, ...]:
    """What each site is to remove: rows of tokens side by side in one attention are one layer.

    So are the images of one row. A list with more entries than layers has one for each site.
    """
    known: dict[Node, int] = {}
    layers: list[int] = []
    for site in sites:
        nodes = [site.node, *(core.node for core in site.cores)]
        layer = next((known[n] for n in nodes if n in known), len(set(layers)))
        known.update(dict.fromkeys(nodes, layer))
        layers.append(layer)
    if is_list(r) and len(r) > len(set(layers)):
        return asked(r, len(sites), rounding)
    each = asked(r, len(set(layers)), rounding)
    return tuple(each[layer] for layer in layers)


def _auto(findings: Findings) -> int:
    """By the keys of the first attention: all attentions of a model run in one dtype."""
    keys = [core.key.meta.get("val") for site in findings.sites for core in site.cores]
    if not keys or not isinstance(keys[0], Tensor):
        return 1
    return auto_align(keys[0].device.type, keys[0].dtype)


def _check(schedule: MergeSchedule, row: tuple[int, ...] | None) -> None:
    """Refuse what is not done as asked."""
    for index, step in enumerate(schedule.steps):
        if step.asked > step.before // 2:
            raise ConfigError(
                f"r asks for {step.asked} tokens at layer {index}, where {step.before} unprotected "
                f"tokens can give {step.before // 2}. Lower r, or pass strict=False to clamp it."
            )
    done = tuple(step.removed for step in schedule.steps)
    if row is not None and done != row:
        raise ConfigError(
            f"every and align (here {schedule.align}) change the list r={list(row)} to "
            f"{list(done)}, and strict=True takes a list as it is. Give that list, or pass "
            "strict=False."
        )
