"""What merging costs and saves on a device, by estimate: of a whole program and of each merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.costs.hardware import DeviceModel
from tome_fx.costs.kernels import Kernel, kernels_of
from tome_fx.costs.ours import with_kernels
from tome_fx.costs.work import work_of
from tome_fx.graph.extents import Extents
from tome_fx.macs import macs_of
from tome_fx.own_matching import OwnMatching

# One of them for each merge, even where the sum in front of it, its end, is part of a kernel.
_MATCH = (ops.match, ops.match_keys, ops.match_metric, ops.plan_of_pairs)
# What a single merge consists of. All else that is inserted (weights of keys, unmerges) is shared.
_MERGE = (ops.head_mean, ops.similarity, ops.keep_apart, ops.prefer_alike, ops.match,
          ops.padding_last, ops.merged_size, ops.merge, ops.merge_sum, ops.match_keys,
          ops.match_metric, ops.merge_norm, ops.by_head, ops.features, ops.joined,
          ops.single, ops.plan_of_pairs)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Seconds and kernels for one call on ``batch`` images: without merging, and with it.

    ``seconds_merging`` is the part of ``seconds_after`` that matching, merging, unmerging and
    weighting take. ``left_out`` are layers whose merge would cost more than it saves.
    """

    hardware: str
    batch: int
    seconds_before: float
    seconds_after: float
    seconds_merging: float
    kernels_before: int
    kernels_after: int
    left_out: tuple[int, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times faster the merged program is."""
        return self.seconds_before / self.seconds_after if self.seconds_after else 1.0


@dataclass(frozen=True)
class Costs:
    """An estimate, and what each merge costs and saves in seconds, by layer."""

    estimate: Estimate
    merges: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class Side:
    """A program to be timed: its graph, and the sizes and batch that its values were made with."""

    module: torch.nn.Module
    graph: Graph
    sizes: Extents
    made_at: int


@dataclass(frozen=True)
class Merging:
    """One merge of the plan: its layer, the captured node that it stands behind, its tokens."""

    layer: int
    node: Node
    removed: int


def estimate(
    before: Side,
    after: Side,
    origin: Mapping[Node, Node],
    merges: Sequence[Merging],
    batch: int,
    device: DeviceModel,
) -> Costs:
    """Time both programs by estimate.

    Args:
        before, after: the captured and the rewritten program.
        origin: the captured node of each rewritten one.
        merges: in program order.
    """

    def inserted(node: Node) -> bool:
        return node.graph is after.graph and (node not in origin or _is_merge(node))

    if device.kernels:
        graph, origin = with_kernels(after.graph, origin)
        after = replace(after, graph=graph)
    old, new = (_kernels(side, batch, before.graph, inserted, device) for side in (before, after))
    stages = _stages(before.graph, after.graph, origin, merges)
    # On the device, of the model's own, old and new, by stage: what merges save is saved there.
    spent = [[0.0] * (len(merges) + 1) for _ in range(2)]
    costs, merging = [0.0] * len(merges), 0.0
    for kernel in old:
        spent[0][stages[kernel.node]] += kernel.seconds(device)
    took_new = _seconds(new, device)
    for kernel, took in zip(new, took_new, strict=True):
        stage = stages[kernel.node]
        if not inserted(kernel.node):
            spent[1][stage] += kernel.seconds(device)
            continue
        merging += took
        if stage and _is_merge(kernel.node):
            costs[stage - 1] += took
    saved = _saved(spent, merges)
    told = Estimate(
        device.name, batch, sum(_seconds(old, device)), sum(took_new), merging, len(old), len(new)
    )
    rows = zip(merges, costs, saved, strict=True)
    return Costs(told, {merge.layer: (cost, gain) for merge, cost, gain in rows})


def _is_merge(node: Node) -> bool:
    return node.target in _MERGE or isinstance(node.target, OwnMatching)


def _seconds(kernels: Sequence[Kernel], device: DeviceModel) -> list[float]:
    """Time of each kernel; where the host is slower than the device, what it takes to start one."""
    on_device = [kernel.seconds(device) for kernel in kernels]
    waits = device.host * len(kernels) > sum(on_device)
    return [device.host] * len(kernels) if waits else on_device


def _kernels(
    side: Side, batch: int, inputs: Graph, inserted: Callable[[Node], bool], device: DeviceModel
) -> list[Kernel]:
    macs = macs_of(side.graph, side.sizes, side.made_at)
    work = work_of(side.module, side.graph, batch, macs, inputs, device.kernels)
    return kernels_of(work, inserted)


def _stages(
    before: Graph, after: Graph, origin: Mapping[Node, Node], merges: Sequence[Merging]
) -> dict[Node, int]:
    """How many merges stand before each node: begun by its match, where its end is in a kernel."""
    stages: dict[Node, int] = {}
    for graph in (before, after):
        ends, matches = {merge.node for merge in merges}, 0
        for node in graph.nodes:
            matches += node.target in _MATCH
            stages[node] = max(len(merges) - len(ends), min(matches, len(merges)))
            ends.discard(origin.get(node, node))
    return stages


def _saved(spent: Sequence[Sequence[float]], merges: Sequence[Merging]) -> list[float]:
    """Seconds that each merge saves: what a stage saves, shared by tokens among those before it."""
    saved, gone = [0.0] * len(merges), 0
    for stage, merge in enumerate(merges, 1):
        gone += merge.removed
        gain = spent[0][stage] - spent[1][stage]
        for i in range(stage):
            saved[i] += gain * merges[i].removed / gone
    return saved
