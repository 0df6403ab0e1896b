"""What a value is worth where all that it is made of is known."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.node import map_arg

from tome_fx.graph.cones import read_values
from tome_fx.graph.extents import known_size

_SIZE = torch.ops.aten.sym_size.int
_ARITHMETIC = {
    getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "getitem")
}


def value_of(
    node: Node, held: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> Tensor | None:
    """The value of ``node`` from what the program reads, ``held`` by name, and inputs ``given``.

    None where another input has a part in it by more than its shape, where a draw has one, and
    where weights have no values.
    """
    worth: dict[Node, Any] = {}
    for own in needed_for(node):
        if own.op == "placeholder":
            value = given.get(own.name)
        else:
            size = own.target is _SIZE
            value = known_size(own.meta["val"]) if size else _worth(own, worth, held)
        if value is None:
            return None
        worth[own] = value
    value = worth[node]
    return value if isinstance(value, Tensor) and _has_values(value) else None


def needed_for(node: Node) -> list[Node]:
    """What a value is made of and itself, in the program's order; of shapes nothing but these."""
    needed = {node}
    row = []
    for own in reversed(node.graph.nodes):
        if own in needed:
            row.append(own)
            needed.update(read_values(own))
    return row[::-1]


def _worth(node: Node, worth: Mapping[Node, Any], held: Mapping[str, Any]) -> Any:
    if node.op == "get_attr":
        value = held.get(str(node.target))
        return value if isinstance(value, Tensor) and _has_values(value) else None
    if node.op != "call_function" or not only_computes(node.target):
        return None
    read = read_values(node)
    known = {**worth, **{n: _shaped(n) for n in node.all_input_nodes if n not in read}}
    args: Any = map_arg(node.args, known.__getitem__)
    kwargs: Any = map_arg(node.kwargs, known.__getitem__)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _has_values(value: Tensor) -> bool:
    return not value.is_meta and not isinstance(value, FakeTensor)


def _shaped(node: Any) -> Tensor:
    """Zeros in the place of a value that only its shape is read of."""
    value = node.meta["val"]
    shape = [known_size(size) for size in value.shape]
    return torch.zeros(shape, dtype=value.dtype, device=value.device)


def only_computes(target: Any) -> bool:
    """An op of PyTorch's own that draws nothing and writes nowhere, or arithmetic on sizes."""
    if not isinstance(target, torch._ops.OpOverload):
        return target in _ARITHMETIC
    drawn = torch.Tag.nondeterministic_seeded in target.tags
    return target.namespace == "aten" and not drawn and not target._schema.is_mutable
