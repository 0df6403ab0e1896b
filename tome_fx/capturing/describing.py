"""A captured graph as a program: its batch axis, and what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from tome_fx.capturing.known import WRITE_IN
from tome_fx.errors import CaptureError
from tome_fx.graph.calls import calls, writes
from tome_fx.graph.checks import is_only_checked
from tome_fx.graph.cones import live_nodes
from tome_fx.graph.extents import Extents, same_size, settled
from tome_fx.graph.provenance import holding, module_path, source_line
from tome_fx.graph.softmaxes import SOFTMAXES, into_product
from tome_fx.program import Program

_READS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)

LOST = "Tracing took a value of its own for a constant"
KEPT = (
    "Write `x.detach()` for `x.data`, and make in `__init__` what a first call keeps or assigns, "
    "or run the model once before it is transformed."
)


def describe(graph: Graph, constants: dict[str, Any], how: str) -> Program:
    """Read the batch axis off the inputs of a captured graph."""
    _refuse_read_values(graph)
    _refuse_open_shapes(graph)
    if how != "dynamo":  # the backend's weights are traced themselves
        _refuse_traced(graph, constants)
    extents = Extents()
    images = [node for node in graph.nodes if node.op == "placeholder"]
    first = images_of(graph)
    if first is None:
        raise CaptureError(
            "The captured program has no tensor input with a batch axis. "
            "Pass example_inputs with the batch on the first axis."
        )
    size = first.meta["val"].shape[0]
    batched = frozenset(n.name for n in images if _rank(n) > 0 and _same(n, size))
    static = isinstance(settled(size), int)
    return Program(graph, constants, how, extents, extents.of(size), batched, static)


def images_of(graph: Graph) -> Node | None:
    """The input whose first axis is the batch: the first with several axes.

    Where that holds ids, the first floating input with more axes: texts may stand before images,
    and have a batch of their own.
    """
    inputs: list[Node] = [n for n in graph.nodes if n.op == "placeholder" and _rank(n) > 1]
    if not inputs or inputs[0].meta["val"].is_floating_point():
        return inputs[0] if inputs else None
    size = inputs[0].meta["val"].shape[0]
    for node in inputs:
        value = node.meta["val"]
        rows = value.shape[0]
        counted = not isinstance(rows, int) or (isinstance(size, int) and rows > 1)
        if value.is_floating_point() and _rank(node) > _rank(inputs[0]) and counted:
            return node
    return inputs[0]


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _same(node: Node, size: Any) -> bool:
    return same_size(node.meta["val"].shape[0], size)


# What to do beside that about a number that is made of an image.
_STAYS = " What is made of an image can stay a tensor: without item(), int() and float()."


def _refuse_read_values(graph: Graph) -> None:
    for node in graph.nodes:
        if node.target in _READS and not is_only_checked(node):
            raise CaptureError(
                f"{module_path(node) or 'forward'} reads a number out of a tensor "
                f"({source_line(node)}), so what follows depends on the values of an input.",
                module_path(node),
                WRITE_IN + _STAYS + _elsewhere(graph, node),
                reads_values=True,
            )


def _refuse_open_shapes(graph: Graph) -> None:
    """How many places an op finds is not known of merged tokens, so nothing could be checked."""
    for node in graph.nodes:
        value = node.meta.get("val")
        tensors = [v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)]
        if any(free_unbacked_symbols(tensor) for tensor in tensors):
            raise CaptureError(
                f"{module_path(node) or 'forward'} makes a shape that follows from values "
                f"({source_line(node)}).",
                module_path(node),
                "Use torch.where(condition, a, b) or masked_fill in place of an index of places."
                + _elsewhere(graph, node),
                reads_values=True,
            )


def _elsewhere(graph: Graph, node: Node) -> str:
    """What else to do where ``node`` is in front of, or behind, the part with all attention."""
    attending = [one for one in graph.nodes if _attends(one)]
    part = holding(attending, but=node) if attending else ""
    if not part:
        return ""
    return (
        f" All attention is in {part}: transform that by itself, with example_call=lambda: "
        "model(...), and put the result in its place."
    )


def _attends(node: Node) -> bool:
    if calls(node, ("aten.scaled_dot_product_attention",)):
        return True
    return calls(node, SOFTMAXES) and into_product(node)


def _refuse_traced(graph: Graph, constants: dict[str, Any]) -> None:
    """Raise CaptureError where a constant has no values: tracing lost what it is made of.

    One that has no part in what the program does (a figure for a log) goes, and what is made of it.
    """
    weights = [value for value in constants.values() if isinstance(value, nn.Parameter)]
    if any(isinstance(weight, FakeTensor) for weight in weights):
        return  # the whole model is one of shapes
    live = live_nodes(graph)
    lost: set[Node] = set()
    for node in graph.find_nodes(op="get_attr"):
        if not isinstance(constants.get(str(node.target)), FakeTensor):
            continue
        lost.add(node)
        if node in live:
            line = source_line(next((user for user in node.users if user in live), node))
            where = f", at {line}" if line else ""
            raise CaptureError(f"{LOST}{where}.", next_step=KEPT)
    for node in graph.nodes:
        if not lost.isdisjoint(node.all_input_nodes):
            lost.add(node)
    for node in reversed(graph.nodes):
        if node in lost:
            graph.erase_node(node)
            constants.pop(str(node.target), None)


def read_by(module: GraphModule) -> dict[str, Any]:
    """What the graph of ``module`` reads, by path."""
    found = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for name in node.target.split("."):
                value = getattr(value, name)
            found[node.target] = value
    return found


def mutates(graph: Graph, besides: str = "") -> bool:
    """Does any op write to one of its arguments, ``besides`` to a node of that kind?

    Buffers that a program counts in (of a batch norm, say) are written to by intent.
    """
    return any(
        writes(node) and not (isinstance(node.args[0], Node) and node.args[0].op == besides)
        for node in graph.nodes
    )


def written(graph: Graph) -> frozenset[str]:
    """What of the model's own the program writes to, by name."""
    return frozenset(
        str(node.args[0].target)
        for node in graph.nodes
        if writes(node) and isinstance(node.args[0], Node) and node.args[0].op == "get_attr"
    )


@contextmanager
def no_fast_path() -> Iterator[None]:
    """``nn.MultiheadAttention``'s fast path off: it is one op that hides the attention."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
