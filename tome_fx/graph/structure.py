"""Do two nodes compute the same, of the same values?"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

# What code computes anew is a few calls long; a model that is run twice is not.
LIMIT = 64


def is_alike(one: Any, other: Any) -> bool:
    """Are both the same call of the same operands, so on to a node that both are made of?

    No where that is more than LIMIT calls, or one that draws random numbers, or writes.
    """
    waiting, seen = [(one, other)], set[tuple[Node, Node]]()
    while waiting:
        a, b = waiting.pop()
        if a is b:
            continue
        if not isinstance(a, Node) or not isinstance(b, Node):
            pairs = _pairs(a, b)
            if pairs is None:
                return False
            waiting += pairs
        elif (a, b) in seen:
            continue
        elif len(seen) == LIMIT or a.op != b.op or a.target != b.target or not _is_pure(a):
            return False
        else:
            seen.add((a, b))
            waiting += [(a.args, b.args), (a.kwargs, b.kwargs)]
    return True


def is_random(op: Any) -> bool:
    """Does an op draw numbers?"""
    tags = op.tags if isinstance(op, torch._ops.OpOverload) else ()
    return torch.Tag.nondeterministic_seeded in tags


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """What must be the same of two arguments; None where they differ as they stand."""
    if type(a) is not type(b):
        return None
    if isinstance(a, dict):
        return [(a[name], b[name]) for name in a] if a.keys() == b.keys() else None
    if isinstance(a, (list, tuple)):
        return list(zip(a, b, strict=True)) if len(a) == len(b) else None
    return [] if a == b else None


def _is_pure(node: Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or is_random(node.target):
        return False
    return not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable
