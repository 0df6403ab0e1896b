"""Normalize: one spelling for what means the same, so that later passes read less.

    assert_async(x)           -> (gone)
    y = dropout(x, p, False)  -> x
    y = clone(x)              -> x        where nothing mutates
    y = add(x, 0.0)           -> add(x, 0.0)   left alone: that is arithmetic

Valid before, valid after; shapes and bits of the result stay as they are. Dropout in training,
casts and everything with a random number stay too.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import bind

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default,
           aten.lift_fresh_copy.default)  # fmt: skip
# Their only effect is to stop the program on inputs that the example did not have.
_CHECKS = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range",
           "sym_constrain_range_for_size")  # fmt: skip


def normalize(graph: Graph) -> Graph:
    """Drop what does nothing; edits ``graph`` in place and returns it."""
    for node in list(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
        elif _is_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return graph


def _is_check(node: Node) -> bool:
    if node.op == "call_module":
        return node.target == "_guards_fn"
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return node.op == "call_function" and not node.users and name in _CHECKS


def _is_nothing(node: Node) -> bool:
    if node.target in _DROPOUTS:
        call = bind(node)
        return call["train"] is False or call["p"] == 0
    if node.target not in _COPIES or not isinstance(node.args[0], Node):
        return False
    # A copy of an input or parameter that leaves the program is what keeps it from being aliased.
    source = node.args[0]
    leaves = any(user.op == "output" for user in node.users)
    return not (leaves and source.op in ("placeholder", "get_attr"))
