"""Ops that are made of other ops, written out as those.

    y = pairwise_distance(x, z)   ->   y = norm(sub(x, z) + eps)

What a library calls by one name is often several ops to a compiler (``CompositeImplicitAutograd``).
A capture keeps the name. Where nothing is known of it, its parts may be: the same calls, so the
same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from tome_fx.graph.calls import Call, bind, writes
from tome_fx.graph.extents import size_before
from tome_fx.graph.provenance import origin_of

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_MANY = 64


def write_out(graph: Graph, is_known: Callable[[Call], bool]) -> None:
    """Edit ``graph`` in place: composite ops that are not known, as parts that all are.

    An op stays whole where a part is not known, writes to a value, asks for one or cannot be
    traced, and where they are many (a recurrent net is a step for each token). Nodes hold fake
    tensors as ``meta["val"]``.
    """
    for node in list(graph.nodes):
        if not _is_composite(node) or is_known(bind(node)):
            continue
        flat, spec = pytree.tree_flatten((node.args, node.kwargs))
        # Sizes are known by what they are the sizes of.
        flat = [value.meta["val"] if _is_number(value) else value for value in flat]
        read = [value for value in flat if isinstance(value, Node)]
        parts = _parts(node.target, flat, spec, [value.meta.get("val") for value in read])
        if parts is None:
            continue
        write_out(parts, is_known)
        if all(_is_plain(part, is_known) for part in parts.nodes):
            _splice(node, parts, read)


def _is_composite(node: Node) -> bool:
    op, made = node.target, pytree.tree_leaves(node.meta.get("val"))
    tensors = bool(made) and all(isinstance(value, torch.Tensor) for value in made)
    if not tensors or not isinstance(op, torch._ops.OpOverload):
        return False
    picked = isinstance(node.meta["val"], torch.Tensor) or all(map(_picks, node.users))
    return picked and op.has_kernel_for_dispatch_key(_COMPOSITE)


def _is_number(value: Any) -> bool:
    return isinstance(value, Node) and isinstance(value.meta.get("val"), (int, torch.SymInt))


def _picks(user: Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)


def _parts(op: Any, flat: list[Any], spec: Any, values: list[Any]) -> Graph | None:
    """What a call of ``op`` on fake ``values`` is made of; None if that cannot be said."""

    def call(*tensors: Any) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(value, Node) else value for value in flat]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        # The tracer's mode for functions would call the whole op again.
        with torch._C.DisableTorchFunction():
            return op.decompose(*args, **kwargs)

    mode = detect_fake_mode(values)
    if mode is None or not all(isinstance(value, torch.Tensor) for value in values):
        return None
    try:
        with mode:
            module: GraphModule = make_fx(
                call, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True
            )(*values)
    except Exception:  # any op may raise anything
        return None
    graph = module.graph
    # What writes in place may do so without gradients, which a trace does not show.
    stays = any(node.target is op or writes(node) for node in graph.nodes)
    graph.eliminate_dead_code()
    return None if stays or len(graph.nodes) > _MANY else graph


def _is_plain(part: Node, is_known: Callable[[Call], bool]) -> bool:
    if part.op != "call_function":
        return part.op in ("placeholder", "output")
    if not isinstance(part.target, torch._ops.OpOverload) or _is_size(part):
        return True  # arithmetic of sizes, an output of several
    return is_known(bind(part))


def _splice(node: Node, parts: Graph, read: list[Node]) -> None:
    """``parts`` in the place of ``node``, which goes."""
    copies: dict[Node, Any] = dict(zip(parts.find_nodes(op="placeholder"), read, strict=True))
    place = origin_of(node)
    result: Any = None
    with node.graph.inserting_before(node):
        for part in parts.nodes:
            if part.op == "output":
                result = map_arg(part.args[0], copies.__getitem__)
            elif part.op == "call_function":
                known = size_before(part.meta["val"], node) if _is_size(part) else None
                copies[part] = known or node.graph.node_copy(part, copies.__getitem__)
                if known is None:
                    copies[part].meta = {**part.meta, **place}
    _replace(node, result)


def _is_size(node: Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int


def _replace(node: Node, result: Any) -> None:
    """All that reads ``node``, or one of its outputs, reads ``result`` instead."""
    if isinstance(result, Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            user.graph.erase_node(user)
    node.graph.erase_node(node)
