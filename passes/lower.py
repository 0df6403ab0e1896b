"""Lower: remove what lift left unused, and give equal inserted nodes one computation.

    size1 = along(size, 4, 0, 3, 1, 0)         size1 = along(size, 4, 0, 3, 1, 0)
    size2 = along(size, 4, 0, 3, 1, 0)   ->    (uses of size2 read size1)
    y = cat([x, merge(z, ..)], 1)        ->    y = cat([x, apart(merge(z, ..))], 1)

Only functions of ``tome_fx.ops`` are shared: they are pure. The program's own nodes stay as they
were captured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import calls

# What places rows, by scatter or without.
_PLACING = (ops.match, ops.merge, ops.merge_sum, ops.total, ops.merged_size, ops.assignment,
            ops.padding_last, ops.plan_of_pairs)  # fmt: skip

# What ends with an addition in place, where it has no kernel of its own.
_ADDED = (ops.merge, ops.merge_sum, ops.total)
# What a compiler may take away.
_SAME = ("aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.to", "aten._to_copy")


def lower(graph: Graph, scatter: bool = True) -> Graph:
    """Edit ``graph`` in place and return it; without ``scatter`` rows are placed by products."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if not scatter and node.target in _PLACING:
            node.kwargs = {**node.kwargs, "onehot": True}
        if node.target is torch.ops.aten.sym_size.int:
            node.target = ops.size_of  # the op has no batching rule, so no vmap
        if node.target is torch.ops.aten.cat.default:
            _part(node)
        if node.op != "call_function" or not _is_op(node):
            continue
        key = (node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return graph


def _part(row: Node) -> None:
    """Let no piece of a row be a value that was added to in place."""
    for piece in row.all_input_nodes:
        made = piece
        while calls(made, _SAME):
            made = made.all_input_nodes[0]
        if made.target in _ADDED:
            with row.graph.inserting_before(row):
                own = row.graph.call_function(ops.apart, (piece,))
            own.meta = {**piece.meta}
            row.replace_input_with(piece, own)


def _is_op(node: Node) -> bool:
    return str(getattr(node.target, "__module__", "")).startswith(ops.__name__)


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_key(element) for element in value)
    return value
