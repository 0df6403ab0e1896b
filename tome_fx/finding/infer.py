"""Types of a captured program, forward from its inputs, by the table of rules."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from tome_fx.finding.naming import Names
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Factor,
    Origin,
    TensorType,
    extent,
    has_batch,
)
from tome_fx.graph.calls import Call, bind, tensor_operands
from tome_fx.graph.extents import Extents
from tome_fx.graph.leaves import Leaf
from tome_fx.graph.regroup import axis_kind
from tome_fx.program import Program, StreamDef
from tome_fx.rules.ask import ask
from tome_fx.rules.base import Context, Lifted, Refusal, Rule

Types = tuple[TensorType, ...]


def infer(
    program: Program,
    streams: tuple[StreamDef, ...],
    plain: Mapping[Node, Types],
    rules: Mapping[str, Rule],
    refused: dict[Node, str] | None = None,
) -> dict[Node, Types]:
    """The types of every node's tensor outputs, with ``streams`` named and nothing merged.

    ``plain`` are the types without streams, used where a rule refuses; ``{}`` on the first run.
    The calls where one does are put into ``refused``, with the reason, in words alone.
    """
    types: dict[Node, Types] = {}
    sizes: dict[Node, Axis] = {}
    names = Names(program, streams)
    for node in program.graph.nodes:
        found = _answer(program, node, types, sizes, rules)
        if isinstance(found, Refusal):
            if refused is not None:
                refused[node] = found.reason.partition(":")[0]
            found = plain.get(node) or _behind(program, node, types)
        types[node] = names.of_all(node, found)
        axis = measured_axis(node, types)
        if axis is not None:
            sizes[node] = axis
    return types


def _answer(
    program: Program,
    node: Node,
    types: Mapping[Node, Types],
    sizes: Mapping[Node, Axis],
    rules: Mapping[str, Rule],
) -> Types | Refusal:
    """The types of what a node yields, or why no rule says what they are."""
    if node.op == "placeholder":
        return _born(program, node, "input")
    if node.op == "get_attr":
        return _born(program, node, "constant")
    if isinstance(node.target, Leaf):
        return _born(program, node, "input")  # what it makes comes from outside of the graph
    picked = picked_type(node, types)
    if picked is not None:
        return picked
    if isinstance(node.target, torch._ops.OpOverload):
        context = context_of(program, bind(node), types, sizes)
        answer = ask(context, rules)
        return answer.results if isinstance(answer, Lifted) else answer
    return Refusal("it is no call of an op")


def context_of(
    program: Program, call: Call, types: Mapping[Node, Types], sizes: Mapping[Node, Axis]
) -> Context:
    """The context of a call whose operands have ``types``."""
    operands = {path: types[node][0] for path, node in tensor_operands(call) if types.get(node, ())}
    shapes = output_shapes(program.extents, call.node)
    return Context(call, operands, shapes, sizes, program.one_image, program.tiles)


def output_shapes(extents: Extents, node: Node) -> tuple[tuple[int, ...], ...]:
    """Extents of each tensor output of a node."""
    return tuple(extents.shape(value) for value in output_values(node))


def output_values(node: Node) -> list[torch.Tensor]:
    """The fake tensors that a node yields."""
    value = node.meta.get("val")
    values: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
    return [v for v in values if isinstance(v, torch.Tensor)]


def picked_type(node: Node, types: Mapping[Node, Types]) -> Types | None:
    """The type of ``source[i]`` for a source with several outputs."""
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return None
    source = node.args[0]
    if not isinstance(source, Node) or not types.get(source):
        return None
    if not isinstance(source.meta.get("val"), (list, tuple)):
        return None
    row = types[source]
    return (row[node.args[1]],) if -len(row) <= node.args[1] < len(row) else None


def measured_axis(node: Node, types: Mapping[Node, Types]) -> Axis | None:
    """The axis that a ``sym_size`` node measures."""
    if node.target is not torch.ops.aten.sym_size.int:
        return None
    source, dim = node.args
    row = types.get(source, ()) if isinstance(source, Node) else ()
    return row[0].axes[dim] if row and isinstance(dim, int) else None


def _born(program: Program, node: Node, kind: str) -> Types:
    """Axes without a history: each plain, but the first of a batched input."""
    rows = []
    values = output_values(node)
    for place, shape in enumerate(output_shapes(program.extents, node)):
        axes: list[Axis] = []
        whole = kind == "input" and not values[place].is_floating_point()
        for dim, size in enumerate(shape):
            atom = Atom(size, Origin(kind, node.name, (place, dim), whole))
            axes.append((atom,) if size != 1 else ())
        images = _image_axes(program, node, kind, shape)
        rows.append(
            TensorType(
                tuple(
                    (Batch(program.batch),) if dim in images else axis
                    for dim, axis in enumerate(axes)
                )
            )
        )
    return tuple(rows)


def _behind(program: Program, node: Node, types: Mapping[Node, Types]) -> Types:
    """New axes behind an op without a rule: of the kind that the same axis had before it."""
    found = [types[n][0] for n in node.all_input_nodes if types.get(n)]
    sources = [t for t in found if any(map(has_batch, t.axes))]  # a weight says nothing of places
    rows = []
    for type_ in _born(program, node, "unknown"):
        axes: list[Axis] = []
        for dim, axis in enumerate(type_.axes):
            same = [t.axes[dim] for t in sources if t.rank == type_.rank]
            kinds = [axis_kind(other) for other in same if extent(other) == extent(axis)]
            axes.append(tuple(_of_kind(factor, kinds) for factor in axis))
        rows.append(TensorType(tuple(axes)))
    return tuple(rows)


def _of_kind(factor: Factor, kinds: list[str]) -> Factor:
    if not kinds or not isinstance(factor, Atom):
        return factor
    return replace(factor, origin=replace(factor.origin, kind=kinds[0]))


def _image_axes(program: Program, node: Node, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Which axis of a value without a history is the batch.

    The symbol of the batch is a history of its own: only what was made from the images has it. An
    op without a rule may shuffle the images, but what it makes for place ``b`` is data of image
    ``b`` from there on.
    """
    if node.op == "placeholder":
        return (0,) if node.name in program.batched else ()
    own = tuple(dim for dim, size in enumerate(shape) if size == program.batch)
    return own if kind != "constant" and not program.static_batch and len(own) == 1 else ()
