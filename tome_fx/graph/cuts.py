"""Values that are a stretch of a larger one along one axis, however that is spelled."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import tensor_value

_SEVERAL = ("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")
_ONE = ("aten.slice", "aten.narrow")


@dataclass(frozen=True)
class Cut:
    """``length`` places of ``row`` along axis ``dim``, from ``start`` on."""

    row: Node
    dim: int
    start: int
    length: int


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
    bound = bind(call)
    row, dim, own = bound["self"], bound["dim"], tensor_value(value)
    whole = tensor_value(row)
    if own is None or whole is None or bound.get("step", 1) != 1:
        return None
    dim %= whole.dim()
    if several:
        before = call.meta["val"][: value.args[1]]
        start = sum(part.shape[dim] for part in before)
    else:
        start = bound["start"] or 0
    numbers = start, own.shape[dim], whole.shape[dim]
    if not all(isinstance(number, int) for number in numbers):
        return None
    return Cut(row, dim, start + (whole.shape[dim] if start < 0 else 0), own.shape[dim])
