"""A rewritten program as text: a line a node, the same on every run.

    merge = ops.merge(add_1, match, None, merged_size, 1, front=1, back=0) : float32[B, 9, 8]

The values in ``meta`` were made with :data:`tome_fx.passes.verify.BATCH` images; an axis that this
number divides prints as ``B`` or ``B*2``, so no other size of a model may be a multiple of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx.passes.verify import BATCH


def listing(graph: Graph) -> str:
    """The lines of ``graph``."""
    return "".join(line(node) + "\n" for node in graph.nodes)


def line(node: Node) -> str:
    """``name = target(args) : value`` of one node."""
    if node.op == "output":
        return f"return {argument(node.args[0])}"
    if node.op in ("get_attr", "placeholder"):
        return f"{node.name} = {node.op}[{node.target}] : {value(node.meta['val'])}"
    given = [argument(element) for element in node.args]
    given += [f"{name}={argument(element)}" for name, element in node.kwargs.items()]
    return f"{node.name} = {target(node)}({', '.join(given)}) : {value(node.meta['val'])}"


def target(node: Node) -> str:
    """``aten.add.Tensor``, ``ops.merge``, ``operator.getitem``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    assert callable(node.target)
    module = node.target.__module__.removeprefix("_")
    module = "ops" if module.startswith("tome_fx.ops") else module
    return f"{module}.{node.target.__name__}"


def argument(given: Any) -> str:
    """An argument: nodes by name, literals as Python writes them."""
    if isinstance(given, list):
        return "[" + ", ".join(map(argument, given)) + "]"
    if isinstance(given, tuple):
        return "(" + ", ".join(map(argument, given)) + ("," if len(given) == 1 else "") + ")"
    return str(given) if isinstance(given, (Node, torch.dtype)) else repr(given)


def value(held: Any) -> str:
    """Dtype and shape; of several outputs, each."""
    if isinstance(held, torch.Tensor):
        return f"{str(held.dtype).removeprefix('torch.')}[{', '.join(map(size, held.shape))}]"
    if isinstance(held, (list, tuple)):
        return "(" + ", ".join(map(value, held)) + ")"
    return size(held) if type(held) is int else repr(held)


def size(extent: int) -> str:
    """``B`` for the batch, ``B*2`` for what holds it, else the number."""
    if extent == 0 or extent % BATCH:
        return str(extent)
    return "B" if extent == BATCH else f"B*{extent // BATCH}"
