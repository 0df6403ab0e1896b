"""What Dynamo hands to a backend: images, weights, sizes, and numbers as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Interpreter, Node


@dataclass(frozen=True)
class Given:
    """The inputs of a graph of Dynamo, in order.

    Attributes:
        nodes: the placeholders.
        values: what Dynamo compiles with, a tensor or a symbolic size each.
        weights: parameters and buffers, by place; all other tensors are data.
        numbers: floats of the user's code that Dynamo passes as tensors, by place.
    """

    nodes: tuple[Node, ...]
    values: tuple[Any, ...]
    weights: frozenset[int]
    numbers: dict[int, float]

    @property
    def data(self) -> tuple[int, ...]:
        """Places of the tensors that are neither weights nor numbers."""
        return tuple(
            i
            for i, value in enumerate(self.values)
            if isinstance(value, Tensor) and i not in self.weights and i not in self.numbers
        )


def given(module: GraphModule, values: Sequence[Any]) -> Given:
    """Tell the inputs of ``module`` apart by what they are."""
    nodes = tuple(node for node in module.graph.nodes if node.op == "placeholder")
    pairs = list(enumerate(zip(nodes, values, strict=True)))
    weights = frozenset(i for i, (node, value) in pairs if _is_weight(node, value))
    numbers = {i: float(value) for i, (node, value) in pairs if _is_number(node, value)}
    return Given(nodes, tuple(values), weights, numbers)


def _is_weight(node: Node, value: Any) -> bool:
    held = node.meta.get("tensor_dict", {})
    return isinstance(value, nn.Parameter) or "_dynamo_static_input_type" in held


def _is_number(node: Node, value: Any) -> bool:
    """A float of Python: with dynamic shapes Dynamo makes it a tensor, and reads it by ``item``."""
    source = node.meta.get("grapharg")
    if not isinstance(value, Tensor) or value.dim() or not getattr(source, "pass_arg_as_tensor", 0):
        return False
    return all(user.op == "call_method" and user.target == "item" for user in node.users)


def fold_numbers(module: GraphModule, inputs: Given) -> None:
    """Write the floats into the graph of ``module``: dropout and norms want numbers."""
    for place, number in inputs.numbers.items():
        for user in list(inputs.nodes[place].users):
            user.replace_all_uses_with(number)  # type: ignore[arg-type]
            module.graph.erase_node(user)


def fix_sizes(fakes: Sequence[Tensor]) -> None:
    """Every size but the batch as it is: tokens are counted for it.

    Reading a symbolic size makes Dynamo guard on it, so that another size compiles anew.
    """
    for fake in fakes:
        for size in fake.shape[1:]:
            int(size)


def held_value(module: GraphModule, node: Node, inputs: Given) -> Any:
    """What a node of Dynamo's graph is worth, if only weights and sizes have a part in it.

    None where data have one, or where weights have no values yet.
    """
    needed = {node}
    for own in reversed(module.graph.nodes):
        if own in needed:
            needed.update(own.all_input_nodes)
    run = Interpreter(module)
    for place, own in enumerate(inputs.nodes):
        value = inputs.values[place]
        if isinstance(value, torch.SymInt):
            run.env[own] = value.node.hint
        elif place in inputs.weights and not isinstance(value, FakeTensor):
            run.env[own] = value
        elif own in needed:
            return None
    with torch.no_grad():
        for own in module.graph.nodes:
            if own in needed and own.op != "placeholder":
                run.env[own] = run.run_node(own)
    return run.env[node]
