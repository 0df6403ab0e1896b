"""In-place ops whose target nobody else reads, as plain ops."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node


def make_plain(graph: Graph) -> Graph:
    """``y = relu_(x)`` becomes ``y = relu(x)`` where ``x`` is a fresh value without other readers.

    Edits ``graph`` in place. Writes to views, inputs and values that are read elsewhere stay: they
    need real functionalisation.
    """
    for node in graph.nodes:
        plain = _plain_overload(node)
        if plain is not None and _is_private(node.args[0], node):
            node.target = plain
    return graph


def _plain_overload(node: Node) -> torch._ops.OpOverload | None:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return None
    space, _, name = op._schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    return getattr(packet, op._overloadname, None)


def _is_private(target: object, writer: Node) -> bool:
    """Is ``target`` a value of its own that only ``writer`` reads?"""
    if not isinstance(target, Node) or set(target.users) != {writer}:
        return False
    made_by = target.target
    if not isinstance(made_by, torch._ops.OpOverload):
        return False
    return all(result.alias_info is None for result in made_by._schema.returns)
