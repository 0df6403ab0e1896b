"""Group: attentions of stretches of one row, as long as each other, in one call.

    q1, q2, q3 = split(q, 64, 2)               q', k', v' = stretches(q | k | v, [0, 64, 128], 64)
    y1 = attention(q1, k1, v1)           ->    y = attention(q', k', v')
    y2 = attention(q2, k2, v2)                 y1, y2, y3 = y[0:1], y[1:2], y[2:3]
    y3 = attention(q3, k3, v3)

So code attends that packs images in a row, or that cuts an image into windows, each of them alone:
as many small kernels as there are stretches. In one call they are images of their own, which is
what they are to attention. Group sizes come along; masks and dropout stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx import ops
from tome_fx.graph.calls import bind
from tome_fx.graph.cuts import Cut, viewed_cut_of
from tome_fx.graph.extents import tensor_value
from tome_fx.graph.provenance import origin_of

aten = torch.ops.aten


@dataclass(frozen=True)
class _Kind:
    """What attentions have in common that are one call, wherever in the row they begin."""

    parts: tuple[Cut, ...]  # of queries, keys, values, and of group sizes if there are any
    how: tuple[tuple[str, Any], ...]


def group(graph: Graph) -> tuple[int, int]:
    """Edit ``graph``, whose nodes have their values, in place.

    Returns:
        How many attentions of stretches there were, and how many calls they are now.
    """
    groups: dict[_Kind, list[tuple[Node, list[int]]]] = {}
    for node in graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        found = _kind(node)
        if found is not None:
            kind, starts = found
            groups.setdefault(kind, []).append((node, starts))
    several = {kind: members for kind, members in groups.items() if len(members) > 1}
    for kind, members in several.items():
        _join(graph, kind, members)
    graph.eliminate_dead_code()
    return sum(map(len, groups.values())), len(groups)


def _kind(node: Node) -> tuple[_Kind, list[int]] | None:
    """What an attention of a stretch is like, and where its queries, keys and sizes begin."""
    call = bind(node)
    parts = [_part(call[name], 4, 2) for name in ("query", "key", "value")]
    mask = call["attn_mask"]
    size = None if mask is None else _size(mask)
    if call["dropout_p"] or (mask is not None and size is None):
        return None
    told = [part for part in parts if part is not None]
    if len(told) < 3 or told[1].start != told[2].start or told[1].length != told[2].length:
        return None
    if size is not None and size.length != told[1].length:
        return None
    how = tuple((name, call[name]) for name in ("is_causal", "scale", "enable_gqa"))
    told += [] if size is None else [size]
    return _Kind(tuple(replace(part, start=0) for part in told), how), [p.start for p in told]


def _size(mask: Node) -> Cut | None:
    """The group sizes of a stretch, where they and nothing else are the mask."""
    if mask.target is not ops.key_bias or len(mask.args) != 2 or mask.kwargs:
        return None
    row = mask.args[1]
    if not isinstance(row, Node) or row.target is not ops.along:
        return None
    pieces, *layout = row.args
    if layout != [4, 0, 3] or not isinstance(pieces, (list, tuple)) or len(pieces) != 1:
        return None
    return _part(pieces[0], 2, 1)


def _part(value: Any, rank: int, dim: int) -> Cut | None:
    """The part of a row of one image that a value is, cut along ``dim``."""
    cut, own = viewed_cut_of(value), tensor_value(value) if isinstance(value, Node) else None
    if cut is None or own is None or own.dim() != rank or cut.dim != dim or own.shape[0] != 1:
        return None
    return cut


def _join(graph: Graph, kind: _Kind, members: list[tuple[Node, list[int]]]) -> None:
    """One call in front of the first of ``members``; each of these becomes a part of it."""
    rows = []
    with graph.inserting_before(members[0][0]):
        for which, part in enumerate(kind.parts):
            row = part.row
            for target, args in part.views:
                row = graph.call_function(target, (row, *args))
            if which == 3:
                row = graph.call_function(aten.reshape.default, (row, [1, 1, -1, 1]))
            starts = [begin[which] for _, begin in members]
            rows.append(graph.call_function(ops.stretches, (row, starts, part.length)))
        mask = None
        if len(rows) > 3:
            sizes = graph.call_function(aten.transpose.int, (rows.pop(), 2, 3))
            mask = graph.call_function(ops.key_bias, (rows[0], sizes))
        target = aten.scaled_dot_product_attention.default
        joined = graph.call_function(target, (*rows, mask), dict(kind.how))
    for which, (node, _) in enumerate(members):
        with graph.inserting_before(node):
            own = graph.call_function(aten.slice.Tensor, (joined, 0, which, which + 1))
        own.meta = dict(node.meta)
        joined.meta = origin_of(node) | joined.meta
        node.replace_all_uses_with(own)
        graph.erase_node(node)
