"""The front door through Dynamo: its graph as a program in pre-dispatch ATen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule

from tome_fx.capturing.describing import describe, read_by
from tome_fx.capturing.tracing import aten_module, named_graph
from tome_fx.compiling.fast_path import Writer, check_masks
from tome_fx.compiling.inputs import Given, fix_sizes
from tome_fx.errors import CaptureError
from tome_fx.graph.extents import whole_size
from tome_fx.graph.regions import flatten_gradient_regions
from tome_fx.program import Program

# What Dynamo makes of them, for tensors that ask for gradients.
_BACKWARDS = ("autograd_function_apply", "register_hook")


def program_of(module: GraphModule, inputs: Given) -> Program:
    """The graph of Dynamo as a program: data are its inputs, weights are read as attributes.

    ``module`` holds no number that was passed as a tensor any more.

    Raises:
        CaptureError: it cannot be traced, or it has no data with a batch axis.
    """
    if any("checkpoint" in str(node.target) for node in module.graph.nodes):
        raise CaptureError(
            "It holds gradient checkpointing, which the backend does not look into. Switch it off, "
            "or use tome_fx.transform."
        )
    _check_backwards(module, inputs)
    check_masks(module, inputs)
    for place in inputs.data:
        if inputs.values[place].is_nested:
            raise CaptureError(
                f"{inputs.nodes[place].name} is a nested tensor, which has images of several sizes "
                "in it. Padded, with a mask, or in one row with their lengths they merge."
            )
    mode = _mode()
    places = [*sorted(inputs.weights), *inputs.data]
    fakes = [_fake(mode, place, inputs) for place in places]
    fix_sizes(fakes[len(inputs.weights) :])
    sizes = {
        place: _measured(value, fakes, inputs.nodes[place].name)
        for place, value in enumerate(inputs.values)
        if isinstance(value, torch.SymInt)
    }

    def call(*tensors: Tensor) -> Any:
        row: list[Any] = list(inputs.values)
        for place, tensor in zip(places, tensors, strict=True):
            row[place] = tensor
        for place, (which, dim) in sizes.items():
            row[place] = tensors[which].shape[dim]
        return Writer(module).run(*row)

    traced = aten_module(call, tuple(fakes), mode)
    flatten_gradient_regions(traced.graph)
    names = [inputs.nodes[place].name for place in places]
    weights = len(inputs.weights)
    graph = named_graph(traced.graph, names[:weights], names[weights:])
    # Tables of indices are read, to protect the tokens that they name, and masks.
    known = {
        inputs.nodes[place].name: inputs.values[place]
        for place in inputs.weights
        if not isinstance(inputs.values[place], FakeTensor)
    }
    constants = {**known, **read_by(traced)}
    return replace(describe(graph, constants, "dynamo"), guarded=True)


def _check_backwards(module: GraphModule, inputs: Given) -> None:
    """Refuse a backward of the model's own, which no tracing keeps, where one may be asked for."""
    names = [str(getattr(n.target, "__name__", n.target)) for n in module.graph.nodes]
    own = any(part in name for name in names for part in _BACKWARDS)
    values = (value for value in inputs.values if isinstance(value, Tensor))
    if own and torch.is_grad_enabled() and any(value.requires_grad for value in values):
        raise CaptureError(
            "It holds a torch.autograd.Function or a hook on a value, and the backend would lose "
            "the gradients that it makes. Call it under torch.no_grad() where none are asked for."
        )


def _mode() -> FakeTensorMode:
    context = TracingContext.try_get()
    mode = context.fake_mode if context is not None else None
    return mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)


def _fake(mode: FakeTensorMode, place: int, inputs: Given) -> Tensor:
    """An input as a fake tensor of the mode that Dynamo compiles in, with its symbolic batch."""
    value = inputs.values[place]
    if isinstance(value, FakeTensor) and value.fake_mode is mode:
        return value
    context = TracingContext.try_get()
    known: Any = None if context is None else context.tensor_to_context.get(value)  # type: ignore[no-untyped-call]
    if known is None:
        return mode.from_tensor(value, static_shapes=True)
    # By its source a view has the symbols that Dynamo gave it.
    return mode.from_tensor(value, source=known.tensor_source, symbolic_context=known)


def _measured(size: torch.SymInt, fakes: list[Tensor], name: str) -> tuple[int, int]:
    """Which axis of which tensor a size is of."""
    found = whole_size(size, fakes)
    if found is None:
        raise CaptureError(
            f"The graph takes a number that changes, {name}, which is the size of no input. "
            "Compile with dynamic=False, or mark only the batch of the images as dynamic "
            "(torch._dynamo.mark_dynamic(images, 0))."
        )
    return found
