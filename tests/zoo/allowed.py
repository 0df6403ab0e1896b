"""The FLOP ratio that the arithmetic allows: every op on tokens on what merging leaves of them.

Counted on the captured program, from its types: each op behind a site has fewer tokens there, and
nothing is spent on matching. What keeps the result from it is matching, and what runs unmerged
though its type says where the tokens are. Convolutions over a grid of tokens need all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tome_fx.graph.axes import Stream, count, map_type
from tome_fx.graph.calls import bind
from tome_fx.graph.cones import cones_of
from tome_fx.graph.convolutions import sees_one_place
from tome_fx.graph.extents import Extents, tensor_value
from tome_fx.graph.grids import has_grid
from tome_fx.macs import macs_of
from tome_fx.passes.plan import plan
from tome_fx.passes.verify import BATCH
from tome_fx.program import Findings, MergeSchedule, Program


class _Merged(Extents):
    """Shapes with the tokens that are left where a value stands."""

    def __init__(self, counts: Mapping[int, tuple[int, ...]]) -> None:
        super().__init__(BATCH)
        self._counts = counts

    def shape(self, value: Tensor) -> tuple[int, ...]:
        return self._counts.get(id(value)) or super().shape(value)


def allowed_ratio(fast: Any) -> float:
    """MACs of the captured program over the fewest that its schedule of merges allows."""
    located = fast._located()
    program, findings = located.program, located.findings
    schedule = plan(findings, fast.settings.r, fast.settings.rounding)
    full = macs_of(program.graph, Extents(BATCH), 1)
    merged = macs_of(program.graph, _Merged(_counts(program, findings, schedule)), 1)
    least = (
        full[node] if _works_on_the_grid(node, findings) else merged.get(node, 0) for node in full
    )
    return sum(full.values()) / sum(least)


def _counts(
    program: Program, findings: Findings, schedule: MergeSchedule
) -> dict[int, tuple[int, ...]]:
    cones, found = cones_of(program.graph), {}
    plain = Extents(BATCH)
    for node in program.graph.nodes:
        value, types = tensor_value(node), findings.types.get(node, ())
        if value is None or len(types) != 1:
            continue
        gone: dict[int, int] = {}
        for step in schedule.steps:
            if cones.depends(node, step.site.node):
                gone[step.site.stream] = gone.get(step.site.stream, 0) + step.removed

        def left(stream: Stream, gone: dict[int, int] = gone) -> Stream:
            merged = gone.get(stream.id, 0)
            return replace(stream, level=int(merged > 0), merged=merged)

        sizes = [count(axis) for axis in map_type(types[0], left).axes]
        whole = [count(axis) for axis in types[0].axes]
        real = plain.shape(value)
        found[id(value)] = tuple(
            r * s // max(w, 1) for r, s, w in zip(real, sizes, whole, strict=True)
        )
    return found


def _works_on_the_grid(node: Node, findings: Findings) -> bool:
    """A convolution that sees neighbours, or a product with rows or columns of the tokens apart."""
    if "conv" in str(node.target) and sees_one_place(bind(node)):
        return False
    types = findings.types.get(node, ())
    on_grid = any(map(has_grid, types)) and node.target is not torch.ops.aten.linear.default
    return on_grid or "conv" in str(node.target)
