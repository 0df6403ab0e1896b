"""Values that are a stretch of a larger one along one axis, however that is spelled."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch.fx import Graph, Node

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import settled, tensor_value

_SEVERAL = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")
_ONE = ("aten.slice", "aten.narrow")
VIEWS = ("aten.transpose", "aten.mT", "aten.permute", "aten.unsqueeze")

# A change of layout: an op, and its arguments but for the value.
View: TypeAlias = tuple[Any, tuple[Any, ...]]


@dataclass(frozen=True)
class Cut:
    """``length`` places along axis ``dim``, from ``start`` on, of ``row`` behind its ``views``."""

    row: Node
    dim: int
    start: int
    length: int
    views: tuple[View, ...] = ()

    @property
    def end(self) -> int:
        """The place behind the last one."""
        return self.start + self.length


def cut_of(value: Any) -> Cut | None:
    """What a value is cut out of; None if it is no stretch of another one, or not a known one.

    Args:
        value: a node; all nodes have their values.
    """
    if not isinstance(value, Node):
        return None
    several = value.target is operator.getitem
    call = value.args[0] if several else value
    if not isinstance(call, Node) or not calls(call, _SEVERAL if several else _ONE):
        return None
    if not several:
        return stretch_of(call, value)
    before, dim = call.meta["val"][: value.args[1]], bind(call)["dim"]
    return stretch_of(call, value, sum(settled(part.shape[dim]) for part in before))


def stretch_of(call: Node, piece: Any, start: Any = None) -> Cut | None:
    """The places along an axis that a call takes out of its row, or writes to.

    None where they are not known, or do not follow each other.

    Args:
        piece: what is there; without the axis, if it is one place.
        start: the first place; None where the call says it.
    """
    bound = bind(call)
    row, own = bound["self"], tensor_value(piece)
    whole = tensor_value(row)
    if whole is None or own is None or bound.get("step", 1) != 1:
        return None
    dim = bound["dim"] % whole.dim()
    single = own.dim() < whole.dim()
    if start is None:
        start = bound["index"] if single else bound["start"] or 0
    length, extent = 1 if single else settled(own.shape[dim]), settled(whole.shape[dim])
    if not all(isinstance(number, int) for number in (start, length, extent)):
        return None
    return Cut(row, dim, max(0, start + extent) if start < 0 else start, int(length))


def takes_all(node: Node) -> bool:
    """Is it a slice of all places, whatever the batch? Its end may be any product of sizes."""
    if not calls(node, ("aten.slice",)):
        return False
    call = bind(node)
    # By their text: a symbolic size that is compared is guarded on.
    before, after = (str(n.meta["val"].shape[call["dim"]]) for n in (call["self"], node))
    return call["start"] in (None, 0) and call["step"] == 1 and before == after


def writes_all(node: Node) -> bool:
    """Is it a ``slice_scatter`` to all places, which leaves nothing of what it writes into?"""
    if not calls(node, ("aten.slice_scatter",)):
        return False
    call = bind(node)
    old, new = (call[name].meta["val"] for name in ("self", "src"))
    whole = call["start"] in (None, 0) and call["step"] == 1
    return whole and old.dtype == new.dtype and str(old.shape) == str(new.shape)


def viewed_cut_of(value: Any) -> Cut | None:
    """What a value is cut out of, where axes are moved or put in before or behind the cut."""
    behind, value = _views(value)
    cut = cut_of(value)
    if cut is None:
        return None
    before, row = _views(cut.row)
    dim = cut.dim
    for view in behind:
        dim = _moved(view, dim)
    told = ((view.target, tuple(map(frozen, view.args[1:]))) for view in before + behind)
    return replace(cut, row=row, dim=dim, views=tuple(told))


def tiles_of(graph: Graph) -> frozenset[Node]:
    """The slices that cut a value into stretches without a gap, as a ``split`` would.

    With one of several places alone, the others are class tokens, which are cut off likewise.
    """
    rows: dict[tuple[Node, int], dict[Node, tuple[int, int]]] = {}
    for node in graph.nodes:
        cut = cut_of(node) if calls(node, _ONE) else None
        if cut is not None:
            own = rows.setdefault((cut.row, cut.dim), {})
            own[node] = cut.start, cut.start + cut.length
    found: set[Node] = set()
    for (row, dim), cuts in rows.items():
        tiles = sorted(set(cuts.values()))
        borders = [0, *(end for _, end in tiles)]
        whole = [start for start, _ in tiles] == borders[:-1]
        if whole and borders[-1] == settled(row.meta["val"].shape[dim]) and _several(tiles):
            found.update(cuts)
    return frozenset(found)


def _several(tiles: list[tuple[int, int]]) -> bool:
    return sum(end - start > 1 for start, end in tiles) > 1


def _views(value: Any) -> tuple[list[Node], Any]:
    """The changes of layout that a value ends with, in order, and what they begin with."""
    views: list[Node] = []
    while isinstance(value, Node) and calls(value, VIEWS) and not value.kwargs:
        views.insert(0, value)
        value = value.args[0]
    return views, value


def _moved(view: Node, dim: int) -> int:
    """Where a change of layout takes an axis."""
    call, rank = bind(view), view.meta["val"].dim()
    if calls(view, ("aten.unsqueeze",)):
        return dim + int(call["dim"] % rank <= dim)
    if calls(view, ("aten.permute",)):
        return [int(place % rank) for place in call["dims"]].index(dim)
    one, other = (int(call.get(*end) % rank) for end in (("dim0", -2), ("dim1", -1)))
    return {one: other, other: one}.get(dim, dim)


def frozen(argument: Any) -> Any:
    """An argument of a call so that it can be looked up: a list of sizes or axes as a tuple."""
    return tuple(argument) if isinstance(argument, list) else argument
