"""Does merging pay at the batch that a program will serve? The estimate, and what follows from it.

Without ``batch`` nobody knows, and multiply-accumulates alone decide (``min_ratio``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from tome_fx import kernels
from tome_fx.costs.estimate import Costs, Estimate, Merging, Side, estimate
from tome_fx.costs.hardware import DeviceModel, device_model, device_of
from tome_fx.errors import ConfigError
from tome_fx.graph.extents import tensor_value
from tome_fx.options import Settings
from tome_fx.passes.verify import BATCH
from tome_fx.program import Program
from tome_fx.report import span
from tome_fx.reporting import Done


def costs_of(module: torch.nn.Module, done: Done, settings: Settings) -> Costs:
    """The estimate of a finished rewrite at ``settings.batch`` images.

    A program whose own code fixes the batch is estimated at that one.

    Raises:
        ConfigError: the program cannot run at this batch, or there is no model of its device.
    """
    program = done.program
    made_at = program.images_near(BATCH)
    batch = program.batch if program.static_batch else settings.batch
    assert batch is not None
    before, after = (
        Side(module, graph, done.sizes, made_at) for graph in (program.graph, done.graph)
    )
    merges = [
        Merging(layer, step.site.node, step.removed)
        for layer, step in enumerate(done.schedule.steps)
        if step.removed
    ]
    device = device_model(settings.hardware) or _own_device(program)
    if kernels.mode() == "portable":
        device = replace(device, kernels=False)
    try:
        # Kernels are for ops that run on values; what they do is in the plain ops, to be counted.
        with kernels.using("portable"):
            return estimate(before, after, done.lifted.origin, merges, batch, device)
    except RuntimeError as error:
        raise ConfigError(
            f"batch={settings.batch}: the program cannot run on that many images, so merging "
            f"cannot be estimated: {error}. Pass another batch, or None."
        ) from error


def dear_merges(costs: Costs) -> dict[int, tuple[float, float]]:
    """Merges that cost more than they save: layer to both, in seconds."""
    return {layer: row for layer, row in costs.merges.items() if row[0] > row[1]}


def left_out_notes(dear: Mapping[int, tuple[float, float]]) -> tuple[str, ...]:
    """A line for each merge that was left out."""
    return tuple(
        f"layer {layer}: no merge, since by the estimate it costs {span(cost)} and saves "
        f"{span(max(gain, 0.0))}"
        for layer, (cost, gain) in dear.items()
    )


def declined(told: Estimate, settings: Settings) -> str:
    """Why merging is not applied at all."""
    return (
        f"Merging does not pay here by the estimate and is not applied: for batch {told.batch} on "
        f"{told.hardware}, {span(told.seconds_before)} in {told.kernels_before} kernels before and "
        f"{span(told.seconds_after)} in {told.kernels_after} after, {span(told.seconds_merging)} "
        f"of that for merging; a speed-up of {told.speedup:.2f}, and min_speedup="
        f"{settings.min_speedup}. A larger batch saves more, and so do fewer, larger merges "
        "(every=3); min_speedup=0 applies it all the same."
    )


def _own_device(program: Program) -> DeviceModel:
    values = (tensor_value(node) for node in program.graph.nodes if node.op == "placeholder")
    return device_of(next((value for value in values if value is not None), None))
