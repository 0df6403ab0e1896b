"""Where a stretch of a value's axes comes from: one step back.

A stretch is a run of neighbouring axes, ``range(first, last + 1)``: a token axis may be spread out
as rows and columns for a while and be one axis again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch.fx import Node

from tome_fx.graph.calls import Call, tensor_operands
from tome_fx.graph.extents import Extents, tensor_value

_RESHAPES = ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")


def operands_along(call: Call, stretch: range, extents: Extents) -> Iterator[tuple[Node, range]]:
    """The operands of ``call`` that a stretch of its output runs through, each with its stretch.

    For ops that keep axes where they are, move them or regroup them; of any other op, what has
    the stretch at the same place from the end. A linear's last axis is new.
    """
    name, rank = call.name.removeprefix("aten."), call.node.meta["val"].dim()
    if name in ("permute", "transpose", "t", "mT"):
        places = [_before(call, name, dim, rank) for dim in stretch]
        if places == list(range(places[0], places[0] + len(places))):
            yield call["self"], range(places[0], places[-1] + 1)
    elif name in _RESHAPES:
        yield from _regrouped(call, stretch, extents)
    elif name != "linear" or stretch.stop < rank:
        for _, node in tensor_operands(call):
            value = tensor_value(node)
            # Broadcasting aligns at the last axis.
            if value is not None and value.dim() >= rank - stretch.start:
                shift = value.dim() - rank
                yield node, range(stretch.start + shift, stretch.stop + shift)


def _before(call: Call, name: str, dim: int, rank: int) -> int:
    if name == "permute":
        return int(call["dims"][dim]) % rank
    ends = (rank - 2, rank - 1)
    first, second = ends if name in ("t", "mT") else (call["dim0"] % rank, call["dim1"] % rank)
    return {first: second, second: first}.get(dim, dim)


def _regrouped(call: Call, stretch: range, extents: Extents) -> Iterator[tuple[Node, range]]:
    """The operand's axes with as many elements before and in them."""
    source = call["self"]
    before = extents.shape(source.meta["val"])
    after = extents.shape(call.node.meta["val"])
    lead, inside = math.prod(after[: stretch.start]), math.prod(after[d] for d in stretch)
    for first in range(len(before)):
        for stop in range(first + 1, len(before) + 1):
            found = math.prod(before[:first]), math.prod(before[first:stop])
            if found == (lead, inside) and before[first] > 1 and before[stop - 1] > 1:
                yield source, range(first, stop)
                return
