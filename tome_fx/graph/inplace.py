"""In-place ops whose target nobody else reads, as plain ops; writes to a part of one likewise.

y = relu_(x)                      y = relu(x)
part = slice(x, 1, 1)       ->    x1 = slice_scatter(x, value, 1, 1)
copy_(part, value); f(x)          f(x1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tome_fx.graph.calls import writes
from tome_fx.graph.extents import known_size

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_SCATTER: Mapping[Any, Any] = {
    torch.ops.aten.slice.Tensor: torch.ops.aten.slice_scatter.default,
    torch.ops.aten.select.int: torch.ops.aten.select_scatter.default,
}


def make_plain(graph: Graph) -> Graph:
    """``y = relu_(x)`` becomes ``y = relu(x)`` where nothing reads ``x`` from then on.

    Edits ``graph`` in place; its nodes hold fake tensors as ``meta["val"]``. Writes to inputs, and
    to values whose views are read later, stay: they need real functionalisation.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        plain = _plain_overload(node)
        if plain is None:
            continue
        if _is_last(node, node.args[0], order) and _is_alike(plain, node):
            node.target = plain
        elif _write_whole(graph, node, plain, order):
            order = {node: place for place, node in enumerate(graph.nodes)}
    return graph


def make_detached(graph: Graph) -> None:
    """``detach_`` of what is made in the graph, as ``detach``, for all that reads it afterwards."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.detach_.default):
        source = node.args[0]
        if source.op != "call_function":
            continue
        node.target = torch.ops.aten.detach.default
        for user in list(source.users):
            if order[user] > order[node]:
                user.replace_input_with(source, node)


def _write_whole(
    graph: Graph, node: Node, plain: torch._ops.OpOverload, order: Mapping[Node, int]
) -> bool:
    """A write to a part as a new whole, for all that reads the whole from then on, if it may be."""
    parts = _parts_of(node)
    base = parts[-1].args[0] if parts else None
    if not isinstance(base, Node) or not is_fresh(base, order) or not _is_only_put_back(node):
        return False
    readers = [user for user in base.users if user is not parts[-1]]
    later = [user for user in readers if order[user] > order[node]]
    if not all(_is_read_before(user, node, order) for user in readers if user not in later):
        return False
    with graph.inserting_before(node):
        left = _written(graph, node, plain)
        if left is None:
            return False
        value = left
        for part in parts:
            whole = part.args[0]
            assert isinstance(whole, Node)
            value = graph.call_function(_SCATTER[part.target], (whole, value, *part.args[1:]))
            value.meta = {**node.meta, "val": whole.meta["val"]}
    for user in later:
        user.replace_input_with(base, value)
    for user in list(node.users):
        user.replace_input_with(node, left)
    for done in (node, *parts):
        if not done.users:
            graph.erase_node(done)
    return True


def _parts_of(node: Node) -> list[Node]:
    """The views that lead from what ``node`` writes to back to a whole, read by nothing else."""
    parts: list[Node] = []
    user, part = node, node.args[0]
    while isinstance(part, Node) and part.target in _SCATTER and set(part.users) == {user}:
        if part.kwargs:
            return []
        parts.append(part)
        user, part = part, part.args[0]
    return parts


def _is_only_put_back(node: Node) -> bool:
    """Is what a write returns only read by the next write? ``y[i] += 1`` puts it where it is."""
    following = node.next
    while following.op == "call_function" and following.target in _SCATTER:
        following = following.next
    copied = following.target is torch.ops.aten.copy_.default and following.args[1] is node
    return set(node.users) <= ({following} if copied else set())


def _written(graph: Graph, node: Node, plain: torch._ops.OpOverload) -> Node | None:
    """What a write leaves in the part, if it is of the part's own shape and dtype."""
    if plain is not torch.ops.aten.copy.default:
        if not _is_alike(plain, node):
            return None
        value = graph.call_function(plain, node.args, node.kwargs)
        value.meta = dict(node.meta)
        return value
    part, source = node.args[0], node.args[1]
    values = [n.meta.get("val") if isinstance(n, Node) else None for n in (part, source)]
    old, new = values
    if not isinstance(source, Node) or not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return None
    shapes = [[*map(known_size, value.shape)] for value in (old, new)]
    alike = shapes[0] == shapes[1] and None not in shapes[0] and old.dtype == new.dtype
    return source if alike else None


def _is_read_before(reader: Node, writer: Node, order: Mapping[Node, int]) -> bool:
    """Does nothing see through ``reader`` what ``writer`` writes?"""
    if reader is writer:
        return True
    if writes(reader) or order[reader] > order[writer]:
        return False
    fresh = is_fresh(reader, order)
    return fresh or all(_is_read_before(user, writer, order) for user in reader.users)


def _plain_overload(node: Node) -> torch._ops.OpOverload | None:
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return None
    space, _, name = op._schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    plain = getattr(packet, op._overloadname, None)
    return None if plain is None or aliases(plain) else plain


def _is_last(reader: Node, value: object, order: Mapping[Node, int]) -> bool:
    """Is ``value`` one of its own that nobody reads after ``reader``, by a view neither?"""
    if not isinstance(value, Node) or not is_fresh(value, order):
        return False
    others = [user for user in value.users if user is not reader]
    return all(order[user] < order[reader] and is_fresh(user, order) for user in others)


def is_fresh(node: Node, order: Mapping[Node, int]) -> bool:
    """Is the result of ``node`` a tensor in memory of its own?"""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable or aliases(op):
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


def aliases(op: torch._ops.OpOverload) -> bool:
    """Does an op say that what it makes may be memory of what it reads?"""
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
