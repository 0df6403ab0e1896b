"""Capture: any model to one program in pre-dispatch ATen, with shapes and a dynamic batch.

    nn.Module        -> torch.export (FX tracing below the module level), non-strict
                     or torch.fx.symbolic_trace, then functorch's make_fx
    fx.GraphModule   -> make_fx
    ExportedProgram  -> its own graph

All end in the same graph: ``linear``, ``layer_norm``, ``softmax`` and fused attention whole,
parameters by their own names, nothing that mutates.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.fx import GraphModule

from tome_fx.capturing.examples import Example
from tome_fx.capturing.exporting import from_export, from_exported_program
from tome_fx.capturing.tracing import from_graph_module, symbolic_trace
from tome_fx.errors import CaptureError, ConfigError
from tome_fx.program import Program

Door: TypeAlias = Literal["auto", "export", "symbolic_trace"]


def capture(
    model: Any, example: Example | None, door: Door = "auto", shared: bool = False
) -> Program:
    """Capture ``model`` in the mode that it is in.

    Args:
        model: a module, a graph module or an exported program; not changed.
        example: inputs; not used for an exported program.
        door: ``auto`` tries export and then symbolic tracing.
        shared: export with one batch for all inputs, which fails where they have several.

    Raises:
        CaptureError: neither way works; the text quotes the model's own line.
    """
    if door not in ("auto", "export", "symbolic_trace"):
        raise ConfigError(f"capture={door!r} is not one of 'auto', 'export', 'symbolic_trace'.")
    if isinstance(model, torch.export.ExportedProgram):
        return from_exported_program(model)
    assert example is not None, "a module is captured with example inputs"
    if isinstance(model, GraphModule):
        return from_graph_module(model, model, example, "graph_module")
    if shared:
        return from_export(model, example, shared=True)
    return _module(model, example, door)


def _module(model: nn.Module, example: Example, door: Door) -> Program:
    if door != "symbolic_trace":
        try:
            program = from_export(model, example)
            single = example.single if program.static_batch else None
            return from_export(model, single) if single is not None else program
        except CaptureError as failure:
            if door == "export":
                raise
            first = failure
    try:
        traced = symbolic_trace(model)
    except CaptureError as error:
        if door == "symbolic_trace":
            raise
        raise first from error
    return from_graph_module(traced, model, example, "symbolic_trace")
