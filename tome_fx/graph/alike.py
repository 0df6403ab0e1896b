"""What is the same for all images, where a model goes a long way about to say so.

    x = cat([cls.expand(B, 1, C), patches], 1) + positions        [B, 1 + N, C]
    own = x[:, :1].repeat(W, 1, 1)                                [W*B, 1, C]

``own`` is ``cls + positions[:, :1]`` in each row, in whatever order these are repeated: the class
token of windows, written for another order of images and windows than that of the windows.
"""

from __future__ import annotations

import operator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import same_size, size_before

aten = torch.ops.aten
_ALONE = ("aten.add", "aten.sub", "aten.mul", "aten.div")
# An axis other than that of the images, the first place on it, and the one behind the last.
_Cut: TypeAlias = tuple[int, int, int]
_WHOLE: _Cut = (0, 0, 0)  # all places


def repeat_alike(node: Node) -> None:
    """Have a ``repeat`` along the images expand its one row, where all images have the same."""
    call = bind(node)
    times, source = call["repeats"], call["self"]
    shape = source.meta["val"].shape
    if len(times) != len(shape) or set(times[1:]) != {1} or not isinstance(times[0], int):
        return
    images = None if times[0] == 1 or same_size(shape[0], 1) else size_before(shape[0], node)
    with node.graph.inserting_before(node):
        row = None if images is None else _row(source, _WHOLE)
        if row is None or images is None:
            return
        size: Node | int
        if isinstance(images, int):
            size = images * times[0]
        else:
            size = node.graph.call_function(operator.mul, (images, times[0]))
            size.meta = {**node.meta, "val": node.meta["val"].shape[0]}
        wide = node.graph.call_function(aten.expand.default, (row, [size, *[-1] * len(shape[1:])]))
        wide.meta = {**node.meta, "val": row.meta["val"].expand(node.meta["val"].shape)}
    # A repeat has memory of its own, and so has what is made of it.
    node.target, node.args = aten.clone.default, (wide,)
    node.kwargs = {"memory_format": torch.contiguous_format}


def _row(node: Node, cut: _Cut) -> Node | None:
    """The row ``[1, ...]`` that a value has for all images, places ``cut``; None if they differ."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return None
    if same_size(value.shape[0], 1):
        return _places_of(node, cut, value.dim())
    if calls(node, ("aten.expand", "aten.repeat")):
        source = bind(node)["self"]
        held, sizes = source.meta["val"].shape, value.shape[1:]
        same = len(held) == value.dim() and all(map(same_size, held[1:], sizes))
        return _row(source, cut) if same else None
    if calls(node, ("aten.slice",)):
        places = _cut_by(node, cut)
        return _row(bind(node)["self"], places) if places else None
    if calls(node, ("aten.cat",)) and cut != _WHOLE:
        return _of_pieces(node, cut)
    return _of_operands(node, cut) if calls(node, _ALONE) else None


def _cut_by(node: Node, cut: _Cut) -> _Cut | None:
    """Places ``cut`` of a slice without steps, along its own axis, in what it slices."""
    call = bind(node)
    source = call["self"].meta["val"]
    axis = call["dim"] % source.dim()
    size, start, end = source.shape[axis], call["start"] or 0, call["end"]
    end = size if end is None else end
    if not axis or call["step"] != 1 or not all(isinstance(n, int) for n in (size, start, end)):
        return None
    start, end, _ = slice(start, end).indices(size)
    if cut == _WHOLE:
        return (axis, start, end) if start < end else None
    return (axis, start + cut[1], start + cut[2]) if cut[0] == axis else None


def _of_pieces(node: Node, cut: _Cut) -> Node | None:
    """The row of a concatenation, of the rows of those pieces that hold places ``cut``."""
    call, (axis, start, end), made = bind(node), cut, node.meta["val"]
    if call["dim"] % made.dim() != axis:
        return None
    rows: list[Node] = []
    before = 0
    for piece in call["tensors"]:
        value = piece.meta["val"]
        size = value.shape[axis] if value.dim() == made.dim() else None
        if not isinstance(size, int):
            return None
        first, last = max(start - before, 0), min(end - before, size)
        if first < last:
            row = _row(piece, (axis, first, last))
            if row is None:
                return None
            rows.append(_cast(row, made.dtype))
        before += size
    if len(rows) == 1:
        return rows[0]
    new = node.graph.call_function(aten.cat.default, (rows, axis))
    new.meta = {**node.meta, "val": aten.cat.default([row.meta["val"] for row in rows], axis)}
    return new


def _cast(row: Node, dtype: torch.dtype) -> Node:
    value = row.meta["val"]
    if value.dtype == dtype:
        return row
    new = row.graph.call_function(aten.to.dtype, (row, dtype))
    new.meta = {**row.meta, "val": value.to(dtype)}
    return new


def _of_operands(node: Node, cut: _Cut) -> Node | None:
    """The row of a call that computes place by place, of the rows of its operands."""
    rank = node.meta["val"].dim()
    rows: dict[Node, Node] = {}
    for operand in node.all_input_nodes:
        value = operand.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        whole = value.dim() == rank
        row = _row(operand, cut) if whole else _places_of(operand, cut, rank)
        if row is None:
            return None
        rows[operand] = row
    new = node.graph.node_copy(node, lambda operand: rows[operand])
    args, kwargs = map_arg((new.args, new.kwargs), lambda operand: operand.meta["val"])
    new.meta = {**node.meta, "val": new.target(*args, **kwargs)}  # type: ignore[operator]
    return new


def _places_of(node: Node, cut: _Cut, rank: int) -> Node:
    """Places ``cut`` of a value that broadcasts to ``rank`` axes, the same for all images."""
    axis, start, end = cut
    value = node.meta["val"]
    own = axis - (rank - value.dim())
    if cut == _WHOLE or own < 0 or value.shape[own] == 1:
        return node
    new = node.graph.call_function(aten.slice.Tensor, (node, own, start, end))
    new.meta = {**node.meta, "val": aten.slice.Tensor(value, own, start, end)}
    return new
