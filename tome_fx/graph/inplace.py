"""In-place ops whose target nobody else reads, as plain ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tome_fx.graph.extents import known_size

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def make_plain(graph: Graph) -> Graph:
    """``y = relu_(x)`` becomes ``y = relu(x)`` where nothing reads ``x`` from then on.

    Edits ``graph`` in place; its nodes hold fake tensors as ``meta["val"]``. Writes to views, to
    inputs, and to values that have views or are read later stay: they need real functionalisation.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        plain = _plain_overload(node)
        if plain is not None and _is_last(node, node.args[0], order) and _is_alike(plain, node):
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
    plain = getattr(packet, op._overloadname, None)
    return None if plain is None or _aliases(plain) else plain


def _is_last(reader: Node, value: object, order: Mapping[Node, int]) -> bool:
    """Is ``value`` one of its own that nobody reads after ``reader``, by a view neither?"""
    if not isinstance(value, Node) or not _is_fresh(value, order):
        return False
    others = [user for user in value.users if user is not reader]
    return all(order[user] < order[reader] and _is_fresh(user, order) for user in others)


def _is_fresh(node: Node, order: Mapping[Node, int]) -> bool:
    """Is the result of ``node`` a tensor in memory of its own?"""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable or _aliases(op):
        return False
    if not torch._C._dispatch_has_kernel_for_dispatch_key(op._name, _COMPOSITE):
        return True
    # What is made of other ops may hand on what came in, which its schema does not tell: einsum a
    # view, dropout its input itself.
    given, made = _again(op, node)
    for own, value in zip(node.all_input_nodes, given, strict=True):
        if made is value:
            return made is not None and _is_last(node, own, order)
    return made is not None and not _storages(made) & _storages(given)


def _is_alike(plain: torch._ops.OpOverload, node: Node) -> bool:
    """Does the plain op keep the dtype? ``half.add_(full)`` does, ``half + full`` does not."""
    _, made = _again(plain, node)
    old = node.meta.get("val")
    return isinstance(made, Tensor) and isinstance(old, Tensor) and made.dtype == old.dtype


def _aliases(op: torch._ops.OpOverload) -> bool:
    return any(result.alias_info is not None for result in op._schema.returns)


def _again(op: torch._ops.OpOverload, node: Node) -> tuple[list[Any], Any]:
    """Stand-ins for what ``node`` reads, and what ``op`` makes of them; None if that is not known.

    They are no fake tensors, which would note what is asked of their sizes as the model's own.
    """
    values = [_stand_in(n.meta.get("val")) for n in node.all_input_nodes]
    if any(value is None for value in values):
        return values, None
    known = dict(zip(node.all_input_nodes, values, strict=True))
    args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
    try:
        return values, op(*args, **kwargs)
    except Exception:  # it does not run without memory
        return values, None


def _stand_in(value: Any) -> Any:
    """A value of the same sizes without memory; None where a size follows from values."""
    if not isinstance(value, Tensor):
        return known_size(value)
    shape, strides = [*map(known_size, value.shape)], [*map(known_size, value.stride())]
    if None in shape or None in strides:
        return None
    return torch.empty_strided(shape, strides, dtype=value.dtype, device="meta")


def _storages(values: Any) -> set[int]:
    tensors = [v for v in pytree.tree_leaves(values) if isinstance(v, Tensor)]
    return {tensor.untyped_storage()._cdata for tensor in tensors}
