"""Ops whose only effect is to stop a program on inputs that its example did not have."""

from __future__ import annotations

from torch.fx import Node

from tome_fx.graph.extents import tensor_value

_CHECKS = ("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range",
           "sym_constrain_range_for_size")  # fmt: skip


def is_check(node: Node) -> bool:
    """Is it such an op?"""
    if node.op == "call_module":
        return node.target == "_guards_fn"
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return node.op == "call_function" and not node.users and name in _CHECKS


def is_only_checked(node: Node) -> bool:
    """Does a number go nowhere but into checks, by itself or by what is counted from it?"""
    return all(
        is_check(user)
        or (user.op == "call_function" and tensor_value(user) is None and is_only_checked(user))
        for user in node.users
    )
