"""What is the same for all images, where a model goes a long way about to say so.

    x = cat([cls.expand(B, 1, C), patches], 1) + positions        [B, 1 + N, C]
    own = x[:, :1].repeat(W, 1, 1)                                [W*B, 1, C]

``own`` is ``cls + positions[:, :1]`` in each row, in whatever order these are repeated: the class
token of windows, written for another order of images and windows than that of the windows.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import same_size, size_before

aten = torch.ops.aten
_ALONE = ("aten.add", "aten.sub", "aten.mul", "aten.div")
_WHOLE = (0, 0, 0)


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


def _row(node: Node, cut: tuple[int, int, int]) -> Node | None:
    """The row ``[1, ...]`` that a value has for all images, places ``cut``; None if they differ.

    Args:
        cut: an axis other than that of the images, and the first and last place on it, the latter
            not included; axis 0 for all places.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return None
    if same_size(value.shape[0], 1):
        return _cut(node, cut)
    if calls(node, ("aten.expand", "aten.repeat")):
        source = bind(node)["self"]
        held, sizes = source.meta["val"].shape, value.shape[1:]
        same = len(held) == value.dim() and all(map(same_size, held[1:], sizes))
        return _row(source, cut) if same else None
    if calls(node, ("aten.slice",)) and cut == _WHOLE:
        places = _places(node)
        return _row(bind(node)["self"], places) if places else None
    if calls(node, ("aten.cat",)) and cut != _WHOLE:
        return _piece(node, cut)
    return _of_operands(node, cut) if calls(node, _ALONE) else None


def _places(node: Node) -> tuple[int, int, int] | None:
    """The axis, first and last place of a slice without steps along another axis than the first."""
    call = bind(node)
    source = call["self"].meta["val"]
    axis = call["dim"] % source.dim()
    size, start, end = source.shape[axis], call["start"] or 0, call["end"]
    end = size if end is None else end
    if not axis or call["step"] != 1 or not all(isinstance(n, int) for n in (size, start, end)):
        return None
    start, end, _ = slice(start, end).indices(size)
    return (axis, start, end) if start < end else None


def _piece(node: Node, cut: tuple[int, int, int]) -> Node | None:
    """The row of a concatenation whose places ``cut`` lie within one of its pieces."""
    call, (axis, start, end) = bind(node), cut
    if call["dim"] % node.meta["val"].dim() != axis:
        return None
    before = 0
    for piece in call["tensors"]:
        size = piece.meta["val"].shape[axis]
        if not isinstance(size, int):
            return None
        if before <= start and end <= before + size:
            return _row(piece, (axis, start - before, end - before))
        before += size
    return None


def _of_operands(node: Node, cut: tuple[int, int, int]) -> Node | None:
    """The row of a call that computes place by place, of the rows of its operands."""
    rank = node.meta["val"].dim()
    rows: dict[Node, Node] = {}
    for operand in node.all_input_nodes:
        value = operand.meta.get("val")
        same = isinstance(value, Tensor) and value.dim() == rank
        row = _row(operand, cut) if same else None
        if row is None:
            return None
        rows[operand] = row
    new = node.graph.node_copy(node, lambda operand: rows[operand])
    args, kwargs = map_arg((new.args, new.kwargs), lambda operand: operand.meta["val"])
    new.meta = {**node.meta, "val": new.target(*args, **kwargs)}  # type: ignore[operator]
    return new


def _cut(node: Node, cut: tuple[int, int, int]) -> Node:
    """The places ``cut`` of a value; itself where it is the same at all of them."""
    axis, start, end = cut
    value = node.meta["val"]
    if cut == _WHOLE or value.shape[axis] == 1:
        return node
    new = node.graph.call_function(aten.slice.Tensor, (node, axis, start, end))
    new.meta = {**node.meta, "val": aten.slice.Tensor(value, axis, start, end)}
    return new
