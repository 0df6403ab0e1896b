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

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.cuts import Cut, stretch_of, writes_all
from tome_fx.graph.extents import settled
from tome_fx.graph.inplace import aliases

aten = torch.ops.aten
_CUTS = ("aten.slice", "aten.narrow", "aten.select")
_WRITES = ("aten.slice_scatter", "aten.select_scatter")


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
    cut = stretch_of(node, node)
    if cut is None or any(user.op == "output" for user in node.users):
        return  # what leaves the program shares no memory that it did not share
    row = cut.row
    while (written := _written(row, cut.dim)) is not None:
        if _meets(written[1], cut.start, cut.end):
            break
        row = written[1].row
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
    dim, row = last[1].dim, node
    free = [(0, int(settled(node.meta["val"].shape[dim])))]
    # The places, what they are cut out of, and the place of that.
    found: list[tuple[int, int, Node, int]] = []
    while free and (written := _written(row, dim)) is not None:
        piece, place = written
        for start, end in [some for some in free if _meets(place, *some)]:
            free.remove((start, end))
            free += _without((start, end), place)
            found.append((max(start, place.start), min(end, place.end), piece, place.start))
        row = place.row
    found += [(start, end, row, 0) for start, end in free]
    if sum(end - start > 1 for start, end, _, _ in found) > 1 or len(found) < 2:
        return
    with node.graph.inserting_before(node):
        values = [
            _cut(_widened(source, dim, node), dim, first, start, end)
            for start, end, source, first in sorted(found, key=lambda piece: piece[0])
        ]
    node.target, node.args, node.kwargs = aten.cat.default, (values, dim), {}


def _meets(place: Cut, start: int, end: int) -> bool:
    return max(start, place.start) < min(end, place.end)


def _without(some: tuple[int, int], place: Cut) -> list[tuple[int, int]]:
    """What is left of some places in front of a stretch and behind it."""
    start, end = some
    left = (start, min(end, place.start)), (max(start, place.end), end)
    return [(first, last) for first, last in left if first < last]


def _widened(piece: Node, dim: int, like: Node) -> Node:
    """What was written, with the axis that it is written along."""
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
    return isinstance(row.target, torch._ops.OpOverload) and not aliases(row.target)


def _uncopied(row: Node) -> Node:
    """What a row is a copy of, where nothing writes to that: a value of the program's own."""
    while calls(row, ("aten.clone",)):
        source: Node = bind(row)["self"]
        if source.op != "call_function":
            break
        row = source
    return row


def _written(row: Node, dim: int | None = None) -> tuple[Node, Cut] | None:
    """What was written last to a row, along an axis if one is given, in the row's own dtype."""
    row = _uncopied(row)
    if not calls(row, _WRITES):
        return None
    piece = bind(row)["src"]
    place = stretch_of(row, piece)
    if place is None or (dim is not None and place.dim != dim):
        return None
    return (piece, place) if piece.meta["val"].dtype == row.meta["val"].dtype else None
