"""Rows that are written piece by piece, as what they are: their pieces, joined.

y = slice_scatter(x, token, 1, 0, 1)
y = slice_scatter(y, token, 1, 0, 1)        rest = slice(x, 1, 1)
rest = slice(y, 1, 1)                  ->   z = cat([token, 2 * rest], 1)
z = slice_scatter(y, 2 * rest, 1, 1)

``x[:, :1] += y[:, :1]; x[:, 1:] += y[:, 1:]`` is a residual so, of tokens that nothing was written
to yet, and what is only written over is not read. Stretches of unknown places stay as they are, and
so do several of more than one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.cuts import writes_all
from tome_fx.graph.extents import settled, tensor_value

aten = torch.ops.aten
_CUTS = ("aten.slice", "aten.narrow", "aten.select")
_WRITES = ("aten.slice_scatter", "aten.select_scatter")


@dataclass(frozen=True)
class _Stretch:
    """Places ``start`` to ``end`` along axis ``dim``: what a call cuts out of a row, or writes to.

    Attributes:
        piece: what is cut out, or written; without the axis, if it is one place.
    """

    piece: Node
    row: Node
    dim: int
    start: int
    end: int

    def meets(self, start: int, end: int) -> bool:
        return max(start, self.start) < min(end, self.end)


def join_pieces(graph: Graph) -> None:
    """Edit ``graph``, which writes to nothing in place, but maybe to buffers."""
    for node in list(graph.nodes):
        if calls(node, _CUTS):
            _read_past_writes(node)
        elif calls(node, _WRITES) and (row := _whole_of(node)) is not None:
            node.replace_all_uses_with(row)
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if calls(node, _WRITES) and not node.users:
            graph.erase_node(node)
        elif calls(node, _WRITES):
            _join(node)


def _read_past_writes(node: Node) -> None:
    """Let a cut read the row as it was before writes beside it."""
    cut = _stretch(node, node)
    if cut is None or any(user.op == "output" for user in node.users):
        return  # what leaves the program shares no memory that it did not share
    row, written = cut.row, _written(cut.row, cut.dim)
    while written is not None and not written.meets(cut.start, cut.end):
        row, written = written.row, _written(written.row, cut.dim)
    if row is not cut.row and _is_own(row):
        node.replace_input_with(cut.row, row)


def _whole_of(node: Node) -> Node | None:
    """The row that is what a write makes of it already; None if there is none.

    ``x[i] += 1`` writes twice, for what the sum is written to is put back where it is. A row that
    is written to all places of another one is it, if nobody else reads it.
    """
    call = bind(node)
    if writes_all(node):
        row: Node = call["src"]
        return row if calls(row, _WRITES) and set(row.users) == {node} else None
    before = _uncopied(call["self"])
    if before.target is not node.target:
        return None
    place, own = ({**bind(n).arguments, "self": None} for n in (before, node))
    return call["self"] if place == own else None


def _join(node: Node) -> None:
    """A write as the row of what was written last to each of its places.

    With one of several places alone, as class tokens are beside the patches: of others each would
    be a row of its own.
    """
    last = _written(node)
    if last is None:
        return
    dim, row = last.dim, node
    free = [(0, int(settled(node.meta["val"].shape[dim])))]
    found: list[tuple[int, int, _Stretch | Node]] = []
    while free and (written := _written(row, dim)) is not None:
        for place in [place for place in free if written.meets(*place)]:
            free.remove(place)
            free += _without(place, written)
            found.append((max(place[0], written.start), min(place[1], written.end), written))
        row = written.row
    found += [(*place, row) for place in free]
    if sum(end - start > 1 for start, end, _ in found) > 1 or len(found) < 2:
        return
    with node.graph.inserting_before(node):
        values = [
            _cut(source, dim, 0, start, end)
            if isinstance(source, Node)
            else _cut(_widened(source, node), dim, source.start, start, end)
            for start, end, source in sorted(found, key=lambda piece: piece[0])
        ]
    node.target, node.args, node.kwargs = aten.cat.default, (values, dim), {}


def _without(place: tuple[int, int], written: _Stretch) -> list[tuple[int, int]]:
    """What is left of some places in front of a stretch and behind it."""
    start, end = place
    left = (start, min(end, written.start)), (max(start, written.end), end)
    return [(first, last) for first, last in left if first < last]


def _widened(written: _Stretch, like: Node) -> Node:
    """What was written, with the axis that it is written along."""
    piece, dim = written.piece, written.dim
    value = piece.meta["val"]
    if value.dim() == like.meta["val"].dim():
        return piece
    widened = piece.graph.call_function(aten.unsqueeze.default, (piece, dim))
    widened.meta = {**like.meta, "val": value.unsqueeze(dim)}
    return widened


def _cut(row: Node, dim: int, first: int, start: int, end: int) -> Node:
    """Places ``start`` to ``end`` of a row whose first place is ``first``."""
    value = row.meta["val"]
    if (start - first, end - first) == (0, settled(value.shape[dim])):
        return row
    place = dim, start - first, end - first
    cut = row.graph.call_function(aten.slice.Tensor, (row, *place))
    cut.meta = {**row.meta, "val": aten.slice.Tensor(value, *place)}
    return cut


def _is_own(row: Node) -> bool:
    """Is a row memory of the program's own, and no view of a weight or an input?"""
    op = row.target
    return isinstance(op, torch._ops.OpOverload) and not any(
        result.alias_info is not None for result in op._schema.returns
    )


def _uncopied(row: Node) -> Node:
    """What a row is a copy of, where nothing writes to that: a value of the program's own."""
    while calls(row, ("aten.clone",)):
        source: Node = bind(row)["self"]
        if source.op != "call_function":
            break
        row = source
    return row


def _written(row: Node, dim: int | None = None) -> _Stretch | None:
    """What was written last to a row, along an axis if one is given, in the row's own dtype."""
    row = _uncopied(row)
    if not calls(row, _WRITES):
        return None
    written = _stretch(row, bind(row)["src"])
    if written is None or (dim is not None and written.dim != dim):
        return None
    same = written.piece.meta["val"].dtype == row.meta["val"].dtype
    return written if same else None


def _stretch(call: Node, piece: Any) -> _Stretch | None:
    """The places that a call cuts out or writes to; None if they are no known stretch."""
    bound = bind(call)
    row, own = bound["self"], tensor_value(piece)
    whole = tensor_value(row)
    if whole is None or own is None or bound.get("step", 1) != 1:
        return None
    dim = bound["dim"] % whole.dim()
    single = own.dim() < whole.dim()
    start = bound["index"] if single else bound["start"] or 0
    length, extent = 1 if single else settled(own.shape[dim]), settled(whole.shape[dim])
    if not all(isinstance(number, int) for number in (start, length, extent)):
        return None
    start = max(0, start + extent if start < 0 else start)
    return _Stretch(piece, row, dim, start, start + int(length))
