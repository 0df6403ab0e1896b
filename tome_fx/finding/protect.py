"""Protected tokens: positions of a stream that the program reads by index."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from tome_fx.graph.axes import Concat, Stream, TensorType, extent, pieces
from tome_fx.graph.calls import bind
from tome_fx.program import StreamDef


def protected_positions(
    stream: StreamDef, types: Mapping[Node, tuple[TensorType, ...]]
) -> tuple[int, int, tuple[str, ...]]:
    """How many tokens at the front and at the back are read by index, and by which nodes.

    A stream is one run of tokens, so a position inside it protects all between it and the nearer
    end.
    """
    front, back, reasons = 0, 0, []
    for node in types:
        position = _read_position(node, stream.id, types)
        if position is None:
            continue
        low, high, whole = position
        if high <= whole - low:
            front = max(front, high)
        else:
            back = max(back, whole - low)
        reasons.append(f"{node.name} reads positions {low}:{high}")
    return front, back, tuple(reasons)


def _read_position(
    node: Node, stream: int, types: Mapping[Node, tuple[TensorType, ...]]
) -> tuple[int, int, int] | None:
    """The stretch of the stream that a select or a one-token slice reads, and the stream's size."""
    names = (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor)
    if node.target not in names or not isinstance(node.args[0], Node):
        return None
    row = types.get(node.args[0])
    call = bind(node)
    if not row or not row[0].rank:
        return None
    axis = row[0].axes[call["dim"] % row[0].rank]
    if len(axis) != 1 or not isinstance(axis[0], (Stream, Concat)):
        return None
    low, high = _stretch(node, extent(axis))
    at = 0
    for part in pieces(axis[0]):
        here = part[0] if len(part) == 1 else None
        if isinstance(here, Stream) and here.id == stream:
            inside = at <= low < high <= at + here.extent
            whole = high - low == here.extent
            return (low - at, high - at, here.extent) if inside and not whole else None
        at += extent(part)
    return None


def _stretch(node: Node, whole: int) -> tuple[int, int]:
    call = bind(node)
    if node.target == torch.ops.aten.select.int:
        index = call["index"]
        low = index % whole if isinstance(index, int) else 0
        return (low, low + 1) if isinstance(index, int) else (0, 0)
    start, end = call["start"] or 0, whole if call["end"] is None else call["end"]
    if not isinstance(start, int) or not isinstance(end, int) or call["step"] != 1:
        return 0, 0
    low, high = (min(max(v + whole if v < 0 else v, 0), whole) for v in (start, end))
    # A slice of one token is a read by index; a longer one is a part of the image.
    return (low, high) if high - low == 1 else (0, 0)
