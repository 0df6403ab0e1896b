"""Which values follow from the same truth about each token of an image, say: is it padding?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx.graph.axes import Axis, Batch, TensorType, extent, is_uniform
from tome_fx.graph.calls import UNTAGGED, Call, bind, tensor_operands
from tome_fx.graph.cones import is_constant, made_of_inputs
from tome_fx.graph.extents import is_truth, tensor_value

# Places keep their order.
_BROADCASTS = ("aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.contiguous", "aten.clone",
               "aten.detach")  # fmt: skip
# Which places stand where after them is a part of what a value follows from.
_MOVES = ("aten.cat", "aten.slice", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.repeat",
          "aten.permute", "aten.transpose", "aten.flip", "aten.roll")  # fmt: skip
_ELEMENTWISE = ("aten.to", "aten._to_copy", "aten.masked_fill",
                *(f"aten.{name}" for name in UNTAGGED.split()))  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """The steps that lead from an input to a value; ``truth``: past one that made it a bool."""

    steps: tuple[Any, ...]
    truth: bool = False


def rows_of(graph: Graph, types: Mapping[Node, tuple[TensorType, ...]]) -> dict[Node, object]:
    """For each value that follows from truths about places alone: what these are.

    Values with equal entries follow from the same truths. On the way from these they are laid
    out, cast, and combined with what is the same everywhere.
    """
    images, rows = made_of_inputs(graph), dict[Node, _Row]()
    for node in graph.nodes:
        if node.op == "placeholder":
            rows[node] = _Row((node.name,), is_truth(node))
        elif isinstance(node.target, torch._ops.OpOverload) and node in images:
            row = _step(bind(node), rows, images, types)
            if row is not None:
                rows[node] = row
    return {node: row.steps for node, row in rows.items() if row.truth}


def _step(
    call: Call,
    rows: Mapping[Node, _Row],
    images: set[Node],
    types: Mapping[Node, tuple[TensorType, ...]],
) -> _Row | None:
    operands = [node for _, node in tensor_operands(call) if tensor_value(node) is not None]
    made = [node for node in operands if node in images]
    row = rows.get(made[0]) if len(made) == 1 else None
    if row is None:
        return None
    source, others = made[0], [node for node in operands if node not in images]
    if call.name in _BROADCASTS or _keeps_places(call, source):
        return row
    steps = (*row.steps, _spelled(call.node, source))
    if call.name == "aten.index":
        return _Row(steps, row.truth)
    pointwise = torch.Tag.pointwise in call.op.tags or call.name in _ELEMENTWISE
    known = pointwise or call.name in _MOVES
    if not known or not all(_is_even(node, types) for node in others):
        return None
    return row if pointwise and row.truth else _Row(steps, row.truth or is_truth(call.node))


def _keeps_places(call: Call, source: Node) -> bool:
    """A slice of all, or an op before the last axis."""
    before, after = tensor_value(source), tensor_value(call.node)
    if before is None or after is None:
        return False
    if call.name == "aten.slice":
        return before.shape == after.shape
    return call.name in ("aten.reshape", "aten.repeat") and before.shape[-1:] == after.shape[-1:]


def _is_even(node: Node, types: Mapping[Node, tuple[TensorType, ...]]) -> bool:
    """Is a value the same at all places of an image?"""
    if is_constant(node):
        return True
    row = types.get(node, ())
    axes = row[0].axes if row else ()
    return bool(row) and all(extent(a) == 1 or is_uniform(a) or _is_batch(a) for a in axes)


def _spelled(value: Any, source: Node | None) -> Any:
    """A call and all that it is made of, ``source`` apart, as something to compare."""
    if isinstance(value, Node):
        if value is source:
            return "source"
        if value.op != "call_function":
            return value.op, value.name
        return str(value.target), _spelled(value.args, source), _spelled(value.kwargs, source)
    if isinstance(value, dict):
        return tuple((name, _spelled(item, source)) for name, item in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_spelled(item, source) for item in value)
    return repr(value)


def _is_batch(axis: Axis) -> bool:
    return len(axis) == 1 and isinstance(axis[0], Batch)
