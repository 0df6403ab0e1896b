"""Capture: any model to one program in pre-dispatch ATen, with shapes and a dynamic batch.

    nn.Module        -> torch.export (FX tracing below the module level), non-strict; where that
                        leaves one batch alone, strict
                     or torch.export with branches that its own buffers decide
                     or torch.export with inputs of whole numbers as constants
                     or torch.fx.symbolic_trace, then functorch's make_fx
                     or torch.export with the modules that it fails in as calls
    fx.GraphModule   -> make_fx
    ExportedProgram  -> its own graph

All end in the same graph: ``linear``, ``layer_norm``, ``softmax`` and fused attention whole,
parameters by their own names, nothing that mutates. Where a program does not compute what the
model does, since its code acts differently while it is traced, the next way is tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.fx import GraphModule

from tome_fx.capturing.backwards import OWN_GRADIENT, Backwards
from tome_fx.capturing.branches import within
from tome_fx.capturing.by_export import by_export, decided_by, with_one_batch
from tome_fx.capturing.calling import inputs_of
from tome_fx.capturing.describing import images_of
from tome_fx.capturing.examples import Example
from tome_fx.capturing.exporting import from_exported_program
from tome_fx.capturing.faithful import check_faithful, in_modes, remembered, treats_one_apart
from tome_fx.capturing.leaves import as_leaves, culprit
from tome_fx.capturing.original import Original
from tome_fx.capturing.results import register_results
from tome_fx.capturing.skeleton import fresh, structure_copy
from tome_fx.capturing.tracing import from_graph_module, symbolic_trace
from tome_fx.errors import CaptureError, ConfigError
from tome_fx.program import Program

Door: TypeAlias = Literal["auto", "export", "symbolic_trace"]
# Raises CaptureError for a program that is not the model's.
Check: TypeAlias = Callable[[Program], None]
# Modules that may stay calls, each found by a failure of its own, before a model is given up.
MOST = 8


def capture(
    model: Any,
    example: Example | None,
    door: Door = "auto",
    shared: bool = False,
    original: Original | None = None,
    check: bool = True,
) -> Program:
    """Capture ``model`` in the mode that it is in.

    Args:
        model: a module, a graph module or an exported program; not changed.
        example: inputs; not used for an exported program.
        door: ``auto`` tries export, symbolic tracing, and export around what cannot be captured.
        shared: export with one batch for all inputs, which fails where they have several.
        original: the model, which is run on the example before it is traced.
        check: also see that the program computes what the original does.

    Raises:
        CaptureError: neither way works; the text quotes the model's own line.
    """
    if door not in ("auto", "export", "symbolic_trace"):
        raise ConfigError(f"capture={door!r} is not one of 'auto', 'export', 'symbolic_trace'.")
    if isinstance(model, torch.export.ExportedProgram):
        own = model.example_inputs
        program = within(from_exported_program(model), model)
        return program if own is None else _with_given(program, Example(own[0], own[1], 0))
    assert example is not None, "a module is captured with example inputs"
    given = example

    asked = original if check else None

    def compare(program: Program) -> None:
        if asked is not None:
            check_faithful(program, asked, given)

    def captured(example: Example) -> Program:
        if original is not None:
            original.fill_caches(example)
        source = model if original is None else original.to_trace(model)
        if asked is not None and model.training and asked.backwards.functions:
            return _with_backwards(source, example, asked.backwards, compare)
        if not isinstance(model, GraphModule) and not shared:
            return _module(source, example, door, compare)
        if shared:
            program = with_one_batch(source, example)
        else:
            program = from_graph_module(model, model, example, "graph_module")
        compare(program)
        return program

    program = captured(example)
    if asked is not None and treats_one_apart(program, asked, example):
        kept = remembered(program, asked, example)
        program = replace(_for_several_or_one(program, captured, example), remembers=kept)
    if asked is not None:
        program = in_modes(program, asked, example)
    return _with_given(program, example)


def _for_several_or_one(
    program: Program, captured: Callable[[Example], Program], example: Example
) -> Program:
    """The program for the one image of the example, or the one for several, marked as such."""
    if example.single is not None:
        with contextlib.suppress(CaptureError):
            return captured(example.single)
    return replace(program, least=max(program.least, 2 * program.times))


def _with_given(program: Program, example: Example) -> Program:
    """The program with what the example holds for its inputs, but for the images themselves."""
    images = images_of(program.graph)
    example = example.sized(program.batch if program.static_batch else None)
    given = {
        node.name: value
        for node, value in inputs_of(program.graph, example)
        if isinstance(value, torch.Tensor) and node is not images
    }
    return replace(program, given=given)


def _module(model: nn.Module, example: Example, door: Door, check: Check) -> Program:
    by_door = _traced if door == "symbolic_trace" else _exported
    try:
        return by_door(model, example, check)
    except CaptureError as failure:
        first = failure
    if register_results(structure_copy(model), example):
        return _module(model, example, door, check)
    if door == "symbolic_trace":
        raise first
    if door == "auto":
        with contextlib.suppress(CaptureError):
            return _traced(model, example, check)
    return _around_leaves(model, example, first, check)


def _exported(model: nn.Module, example: Example, check: Check) -> Program:
    program = by_export(model, example)
    check(program)
    return program


def _traced(model: nn.Module, example: Example, check: Check) -> Program:
    traced, names = symbolic_trace(model)
    program = decided_by(from_graph_module(traced, model, example, "symbolic_trace"), names)
    check(program)
    return program


def _with_backwards(
    model: nn.Module, example: Example, backwards: Backwards, check: Check
) -> Program:
    """The program of training with the modules as calls that have a backward of their own.

    Raises:
        CaptureError: one of them cannot be, or is the model itself.
    """
    reasons = backwards.reasons()
    path, reason = next(iter(reasons.items()))
    try:
        if not path:
            raise CaptureError("It is called by the model itself.")
        with as_leaves(model, reasons, example):
            return _exported(model, example, check)
    except CaptureError as error:
        text = f"{reason} It is kept in training by calls of its module alone: {error.found}"
        raise CaptureError(text, path, OWN_GRADIENT) from error


def _around_leaves(
    model: nn.Module, example: Example, first: CaptureError, check: Check
) -> Program:
    """The program with the modules that cannot be captured as calls, found one by one."""
    failure, traced, reasons = first, model, dict[str, str]()
    for _ in range(MOST):
        path = culprit(failure, traced)
        if not path or path in reasons:
            break
        reasons = {p: why for p, why in reasons.items() if not p.startswith(path + ".")}
        reasons[path] = failure.found
        tried = fresh(model)
        try:
            with as_leaves(tried, reasons, example):
                return _exported(tried, example, check)
        except CaptureError as error:
            failure, traced = error, tried
    if failure.found == first.found:
        raise first
    text = f"{first} With the module that it is in left out: {failure}"
    raise CaptureError(text, first.module, reads_values=first.reads_values) from first
