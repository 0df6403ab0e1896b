"""Capture: any model to one program in pre-dispatch ATen, with shapes and a dynamic batch.

    nn.Module        -> torch.export (FX tracing below the module level), non-strict
                     or torch.export with branches that its own buffers decide
                     or torch.fx.symbolic_trace, then functorch's make_fx
                     or torch.export with the modules that it fails in as calls
    fx.GraphModule   -> make_fx
    ExportedProgram  -> its own graph

All end in the same graph: ``linear``, ``layer_norm``, ``softmax`` and fused attention whole,
parameters by their own names, nothing that mutates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Set
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.fx import GraphModule

from tome_fx.capturing.decided import DecidedByBuffers
from tome_fx.capturing.describing import written
from tome_fx.capturing.examples import Example
from tome_fx.capturing.exporting import from_export, from_exported_program
from tome_fx.capturing.leaves import as_leaves, culprit
from tome_fx.capturing.tracing import from_graph_module, symbolic_trace
from tome_fx.errors import CaptureError, ConfigError
from tome_fx.program import Program

Door: TypeAlias = Literal["auto", "export", "symbolic_trace"]
# Modules that may stay calls, each found by a failure of its own, before a model is given up.
MOST = 8


def capture(
    model: Any, example: Example | None, door: Door = "auto", shared: bool = False
) -> Program:
    """Capture ``model`` in the mode that it is in.

    Args:
        model: a module, a graph module or an exported program; not changed.
        example: inputs; not used for an exported program.
        door: ``auto`` tries export, symbolic tracing, and export around what cannot be captured.
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
    if door == "symbolic_trace":
        return _traced(model, example)
    try:
        return _exported(model, example)
    except CaptureError as failure:
        first = failure
    if door == "auto":
        with contextlib.suppress(CaptureError):
            return _traced(model, example)
    return _around_leaves(model, example, first)


def _exported(model: nn.Module, example: Example) -> Program:
    try:
        return _plainly(model, example)
    except CaptureError as failure:
        first = failure
    reading = DecidedByBuffers(model)
    if not reading.serves:
        raise first
    try:
        with reading:
            program = _plainly(model, example)
    except CaptureError as second:
        raise (second if reading.names else first) from None
    return _decided(program, reading.names)


def _plainly(model: nn.Module, example: Example) -> Program:
    program = from_export(model, example)
    single = example.single if program.static_batch else None
    return from_export(model, single) if single is not None else program


def _traced(model: nn.Module, example: Example) -> Program:
    traced, names = symbolic_trace(model)
    return _decided(from_graph_module(traced, model, example, "symbolic_trace"), names)


def _decided(program: Program, names: Set[str]) -> Program:
    """The program that the values of buffers decided, if it leaves them as they are."""
    changed = ", ".join(sorted(names & written(program.graph)))
    if changed:
        raise CaptureError(
            f"The model's code branches on the values of {changed} and writes to it, so that one "
            "call may do something else than the one before."
        )
    return replace(program, decided=tuple(sorted(names)))


def _around_leaves(model: nn.Module, example: Example, first: CaptureError) -> Program:
    """The program with the modules that cannot be captured as calls, found one by one."""
    failure, reasons = first, dict[str, str]()
    for _ in range(MOST):
        path = culprit(failure, model)
        if not path or path in reasons:
            break
        reasons = {p: why for p, why in reasons.items() if not p.startswith(path + ".")}
        reasons[path] = failure.found
        try:
            with as_leaves(model, reasons, example):
                return _exported(model, example)
        except CaptureError as error:
            failure = error
    if failure.found == first.found:
        raise first
    text = f"{first} With the module that it is in left out: {failure}"
    raise CaptureError(text, first.module) from first
