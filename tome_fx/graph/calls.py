"""Arguments by schema name: keyword, position and default are one thing."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

# Elementwise ops without the tag that says so.
UNTAGGED = (
    "hardswish log_sigmoid where rsub true_divide divide multiply subtract floor_divide isclose "
    "leaky_relu polar complex real imag conj resolve_conj ldexp negative absolute fix greater less "
    "greater_equal less_equal not_equal __and__ __or__"
)


@dataclass(frozen=True)
class Call:
    """A ``call_function`` node of an ATen op with its arguments bound to the op's schema.

    ``arguments`` holds every argument, defaults filled in. Tensor lists stay lists.
    """

    node: Node
    op: torch._ops.OpOverload
    arguments: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def filled(self, changed: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name with the values of ``changed`` put in by path."""
        values = dict(self.arguments)
        for path, value in changed.items():
            name, _, index = path.partition(".")
            if index:
                row = list(values[name])
                row[int(index)] = value
                values[name] = row
            else:
                values[name] = value
        return values

    @property
    def name(self) -> str:
        """``aten.add``: the op without its overload."""
        return packet_name(self.op)


def packet_name(op: torch._ops.OpOverload) -> str:
    """``aten.add`` for ``aten.add.Tensor``."""
    return op._schema.name.replace("::", ".")


def calls(node: Node, names: Container[str]) -> bool:
    """Is ``node`` a call of one of these ops, ``aten.add`` say?"""
    return isinstance(node.target, torch._ops.OpOverload) and packet_name(node.target) in names


def writes(node: Node) -> bool:
    """Is ``node`` a call of an op that writes to one of its arguments?"""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def bind(node: Node) -> Call:
    """Bind the arguments of an ATen call by name. Raises TypeError for any other node."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target!r}, which has no schema")
    bound: dict[str, Any] = {}
    for position, argument in enumerate(op._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return Call(node, op, bound)


def tensor_operands(call: Call) -> Iterator[tuple[str, Node]]:
    """The node operands as ``(path, node)``; an element of a list has the path ``name.index``."""
    for name, value in call.arguments.items():
        if isinstance(value, Node):
            yield name, value
        elif isinstance(value, (list, tuple)):
            for index, element in enumerate(value):
                if isinstance(element, Node):
                    yield f"{name}.{index}", element


def unbind(call: Call, changed: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with the values of ``changed`` put in by path.

    The spelling follows the schema: what may be positional is, up to the last argument that is not
    at its default.
    """
    values = call.filled(changed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    schema = call.op._schema.arguments
    given = [
        argument.name
        for argument in schema
        if argument.name in values
        and not (argument.has_default_value() and _same(values[argument.name], argument))
    ]
    last = max((i for i, a in enumerate(schema) if a.name in given), default=-1)
    for position, argument in enumerate(schema):
        if argument.kwarg_only:
            if argument.name in given:
                kwargs[argument.name] = values[argument.name]
        elif position <= last:
            args.append(values[argument.name])
    return tuple(args), kwargs


def _same(value: Any, argument: Any) -> bool:
    default = argument.default_value
    return type(value) is type(default) and not isinstance(value, Node) and bool(value == default)
