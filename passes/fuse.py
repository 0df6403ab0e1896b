"""Fuse: put steps that one kernel does into one call.

    x = stream + branch
    metric = head_mean(k, 1, 0)
    scores = similarity(metric, 1)
    plan = match(scores, 16, 1)                plan = match_keys(k, 16, 1, 1, 0)
    size = merged_size(plan, None, k)    ->    x1, y, size = merge_norm(
    x1 = merge(x, plan, None, size, 1)             stream, plan, None, k, [C], w, b, branch=branch)
    y = layer_norm(x1, [C], w, b)

    row = along([1, size], 4, 0, 3)
    o = kernel_attention(q, k, v, row)   ->    o = level_attention(q, k, v, level)

where ``level`` is what the same kernel makes of the sizes. For devices that have such kernels.
Elsewhere the graph is better left as it is, since compilers fuse plain steps as they like, but for
streams so long that the scores would need more memory than the model: ``match_metric`` has a few
rows of them at a time. A fused call without its kernel does the same steps. Left alone are scores
that something else reads (masks of padding, parallel attentions), merges on other axes, and what
merges without scatter.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import tensor_value
from tome_fx.graph.provenance import origin_of

aten = torch.ops.aten


def fuse(graph: Graph, kernels: bool) -> Graph:
    """Edit ``graph`` in place and return it; what the new calls replace is gone.

    Without ``kernels`` only scores that would fill the memory are fused with their match.
    """
    for node in list(graph.nodes):
        if node.target is ops.match:
            _fuse_match(graph, node, kernels)
    if kernels:
        order = {node: place for place, node in enumerate(graph.nodes)}
        for node in graph.find_nodes(op="call_function", target=aten.layer_norm.default):
            _fuse_norm(graph, node, order)
        for node in graph.find_nodes(op="call_function", target=ops.along):
            _take_level(graph, node)
    graph.eliminate_dead_code()
    graph.lint()
    return graph


def _fuse_match(graph: Graph, node: Node, kernels: bool) -> None:
    """``node`` is a match; its scores must be its own, and of one attention."""
    scores, r, parity = cast("tuple[Any, ...]", node.args)
    if node.kwargs or not _is(scores, ops.similarity) or len(scores.users) > 1:
        return
    metric, odd = scores.args
    if not _is(metric, ops.head_mean) or odd != parity:
        return
    if not kernels and not _is_long(scores):
        return
    with graph.inserting_before(node):
        if kernels:
            keys, front, back = metric.args
            fused = graph.call_function(ops.match_keys, (keys, r, parity, front, back))
        else:
            fused = graph.call_function(ops.match_metric, (metric, r, parity))
    _replace(node, fused)


def _is_long(scores: Node) -> bool:
    """Are an image's scores more than should be in memory at a time?"""
    value = tensor_value(scores)
    return value is not None and value.shape[1] * value.shape[2] > ops.SCORES


def _fuse_norm(graph: Graph, node: Node, order: Mapping[Node, int]) -> None:
    """``node`` is a norm; its operand must be a merge of tokens on axis 1."""
    norm = bind(node)
    merge, alone = norm["input"], False
    if _is(merge, aten.squeeze.dims) and merge.args[1] == [0]:
        merge, alone = merge.args[0], True  # of a program for one image, without an axis of images
    if not _is(merge, ops.merge) or merge.kwargs.get("onehot") or merge.args[4:] != (1,):
        return
    x, plan, size, new_size = merge.args[:4]
    if not _is(new_size, ops.merged_size) or tuple(new_size.args[:2]) != (plan, size):
        return
    scale = [norm["weight"], norm["bias"]]
    if not all(_moved(operand, merge, order) for operand in scale if operand is not None):
        return
    args = (x, plan, size, new_size.args[2], norm["normalized_shape"], *scale, norm["eps"])
    ends = {name: merge.kwargs[name] for name in ("front", "back") if name in merge.kwargs}
    framed = _is(x, aten.unsqueeze.default) and x.args[1] == 0 and list(x.users) == [merge]
    summands = _summands(x.args[0], x) if framed else _summands(x, merge)
    with graph.inserting_before(merge):
        if summands is not None:
            stream, branch = _of_images(graph, summands) if framed else summands
            args, ends = (stream, *args[1:]), ends | {"branch": branch}
        fused = graph.call_function(ops.merge_norm, args, ends)
        parts = [graph.call_function(operator.getitem, (fused, i)) for i in range(3)]
    fused.meta.update(origin_of(merge))
    made, normed, size_made = (old.meta.get("val") for old in (merge, node, new_size))
    if alone and isinstance(normed, Tensor):
        normed = normed.unsqueeze(0)
    fused.meta["val"] = (made, normed, size_made, _level_of(made, size_made))
    _replace(merge, parts[0])
    if alone:
        parts[1].meta = dict(fused.meta, val=normed)
        with graph.inserting_before(node):
            parts[1] = graph.call_function(aten.squeeze.dims, (parts[1], [0]))
    _replace(node, parts[1])
    if all(order.get(user, -1) > order[merge] for user in new_size.users):
        _replace(new_size, parts[2])


def _level_of(merged: object, size: object) -> Tensor | None:
    """What stands for ``log2 size`` of all merged rows."""
    if not isinstance(merged, Tensor) or not isinstance(size, Tensor):
        return None
    return size.new_empty(merged.shape[:2])


def _take_level(graph: Graph, along: Node) -> None:
    """Where kernels of attention read sizes that a merge made with the norm behind it."""
    pieces, *layout = cast("tuple[Any, ...]", along.args)
    if along.kwargs or layout[:3] != [4, 0, 3] or set(layout[3:]) - {1}:
        return
    sizes = [i for i, piece in enumerate(pieces) if isinstance(piece, Node)]
    if len(sizes) != 1 or not _is(pieces[sizes[0]], operator.getitem):
        return
    fused, which = pieces[sizes[0]].args
    ends = [sum(pieces[: sizes[0]]), sum(pieces[sizes[0] + 1 :])]
    made = _is(fused, ops.merge_norm) and which == 2
    if not made or ends != [fused.kwargs.get(name, 0) for name in ("front", "back")]:
        return
    for user in list(along.users):
        if user.target is not ops.kernel_attention or user.args[3] is not along:
            continue
        with graph.inserting_before(user):
            level = graph.call_function(operator.getitem, (fused, 3))
        level.meta["val"] = fused.meta["val"][3]
        user.target, user.args = ops.level_attention, (*user.args[:3], level)


def _of_images(graph: Graph, values: tuple[Node, Node]) -> tuple[Node, ...]:
    """Values of the one image of a program with an axis of images in front."""
    return tuple(graph.call_function(aten.unsqueeze.default, (value, 0)) for value in values)


def _summands(x: Any, merge: Node) -> tuple[Node, Node] | None:
    """Stream and branch where ``x`` is a residual sum that nothing but ``merge`` reads."""
    if not _is(x, aten.add.Tensor) or x.kwargs or list(x.users) != [merge]:
        return None
    one, other = x.args
    values = [tensor_value(one), tensor_value(other), tensor_value(x)]
    if any(value is None for value in values):
        return None
    kinds = {(value.shape, value.dtype, value.device) for value in values if value is not None}
    return (one, other) if len(kinds) == 1 else None


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, Node) and value.target is target


def _moved(operand: Node, before: Node, order: Mapping[Node, int]) -> bool:
    """Is the operand there before ``before``? A weight that is read later is read earlier."""
    if order[operand] < order[before]:
        return True
    if operand.op == "get_attr":
        before.prepend(operand)
    return operand.op == "get_attr"


def _replace(old: Node, new: Node) -> None:
    """``new`` in all places of ``old``, with all that is known about it."""
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
