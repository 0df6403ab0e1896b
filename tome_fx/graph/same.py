"""Are two graphs one computation?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx.graph.cones import live_nodes


def is_same(one: Graph, other: Graph, is_held: Callable[[str, str], bool]) -> bool:
    """Do both do the same ops in the same order, on the same inputs and constants?

    What leads to no result counts for nothing. ``is_held``: do two names, one of each, stand for
    the same?
    """
    ours, theirs = _ops(one), _ops(other)
    if len(ours) != len(theirs):
        return False
    names: dict[Node, Node] = {}
    for a, b in zip(ours, theirs, strict=True):
        names[b] = a
        if a.op != b.op:
            return False
        if a.op == "get_attr":
            if not is_held(str(a.target), str(b.target)):
                return False
        elif a.target != b.target or not _is_same_call(a, b, names):
            return False
    return bool(_result_of(one) == _result_of(other))


def _ops(graph: Graph) -> list[Node]:
    live = live_nodes(graph)
    return [node for node in graph.nodes if node in live]


def _is_same_call(a: Node, b: Node, names: dict[Node, Node]) -> bool:
    def named(node: Node) -> Any:
        return names.get(node)

    if a.op == "placeholder":
        return True
    wanted: tuple[Any, Any] = (a.args, a.kwargs)
    found = (map_arg(b.args, named), map_arg(b.kwargs, named))
    return bool(_told(wanted) == _told(found))


def _told(value: Any) -> Any:
    """Nested arguments as they compare: by class as well, for 1 is True and 1.0."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_told, value))
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items()}
    return type(value), value


def is_equal(a: Any, b: Any) -> bool:
    """Are both tensors of the same numbers, as they stand in a program?"""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) or a.is_meta:
        return False
    return torch.equal(a, b)


def _result_of(graph: Graph) -> Any:
    """How a result is put together."""
    info = getattr(graph._codegen, "pytree_info", None)
    return info and info.out_spec
