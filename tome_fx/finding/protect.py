"""Protected tokens: positions of a stream that the program reads by index."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from tome_fx.graph.axes import Axis, Concat, Stream, TensorType, extent, pieces
from tome_fx.graph.calls import Call, bind
from tome_fx.graph.extents import tensor_value
from tome_fx.graph.values import value_of
from tome_fx.program import Program, StreamDef

Types = Mapping[Node, tuple[TensorType, ...]]
# An index of more positions is a part of the image, and more at an end are its border.
_FEW = 8


@dataclass(frozen=True)
class Read:
    """What a call takes of a row of tokens by index: stretches of it, or all but some places."""

    name: str
    axis: Axis
    stretches: tuple[tuple[int, int], ...]
    left_out: frozenset[int]


def protected_positions(
    stream: StreamDef, reads: Iterable[Read]
) -> tuple[int, int, tuple[str, ...]]:
    """How many tokens at the front and at the back are read by index, and by which nodes.

    A stream is one run of tokens, so a position inside it protects all between it and the nearer
    end.
    """
    front, back, reasons = 0, 0, []
    for read in reads:
        for low, high in read.stretches:
            found = _inside(read.axis, stream.id, low, high)
            if found is None:
                continue
            low, high, whole = found
            if high <= whole - low:
                front = max(front, high)
            else:
                back = max(back, whole - low)
            reasons.append(f"{read.name} reads positions {low}:{high}")
        low, high = _ends_left_out(read, stream.id)
        front, back = max(front, low), max(back, high)
        if low or high:
            reasons.append(f"{read.name} leaves out {low} in front and {high} behind")
    return front, back, tuple(reasons)


def reads_by_index(types: Types, program: Program) -> Iterator[Read]:
    """What the calls of a typed program take of rows of tokens by index."""
    for node in types:
        found = _read_axis(node, types)
        if found is None:
            continue
        axis, call = found
        stretches = tuple(_positions(call, extent(axis), program))
        left_out = _left_out(call, extent(axis), program)
        if stretches or left_out:
            yield Read(node.name, axis, stretches, left_out)


def _read_axis(node: Node, types: Types) -> tuple[Axis, Call] | None:
    """The axis that a call takes positions of, if it is a row of tokens."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    call = bind(node)
    if call.name.removeprefix("aten.") not in _READS:
        return None
    row = types.get(call["self"], ())
    if not row or not row[0].rank:
        return None
    dim = call.get("dim", 0)
    if call.name == "aten.index":
        named = [i for i, value in enumerate(call["indices"]) if value is not None]
        if len(named) != 1:
            return None
        dim = named[0]
    axis = row[0].axes[dim % row[0].rank]
    return (axis, call) if len(axis) == 1 and isinstance(axis[0], (Stream, Concat)) else None


def _inside(axis: Axis, stream: int, low: int, high: int) -> tuple[int, int, int] | None:
    """A stretch of the axis as one of the stream on it, and the stream's size."""
    at = 0
    for part in pieces(axis[0]):
        here = part[0] if len(part) == 1 else None
        if isinstance(here, Stream) and here.id == stream:
            inside = at <= low < high <= at + here.extent
            whole = high - low == here.extent
            return (low - at, high - at, here.extent) if inside and not whole else None
        at += extent(part)
    return None


def _left_out(call: Call, whole: int, program: Program) -> frozenset[int]:
    """The places that a call leaves out which reads most of them by number."""
    name = call.name.removeprefix("aten.")
    if name not in ("index", "index_select"):
        return frozenset()
    index = call["index"] if name != "index" else next(filter(None, call["indices"]))
    read = {position % whole for position in _constant(index, program, whole)}
    out = frozenset(range(whole)) - read
    return out if read and len(out) * _PART <= whole else frozenset()


def _ends_left_out(read: Read, stream: int) -> tuple[int, int]:
    """How many tokens at the ends of a stream a call leaves out that reads all others by number.

    So class tokens go that were written into a row, in place of being joined to it.
    """
    found = [_inside(read.axis, stream, place, place + 1) for place in read.left_out]
    left = {place for place, _, _ in filter(None, found)}
    size = next((size for _, _, size in filter(None, found)), 0)
    front = next(i for i in range(size + 1) if i not in left)
    back = next(i for i in range(size + 1) if size - 1 - i not in left)
    ends = front + back == len(left) and max(front, back) <= _FEW
    return (front, back) if ends else (0, 0)


def _positions(call: Call, whole: int, program: Program) -> Iterator[tuple[int, int]]:
    """Positions that a call reads one by one; a longer stretch is a part of the image."""
    name = call.name.removeprefix("aten.")
    if name == "select":
        if isinstance(call["index"], int):
            yield call["index"] % whole, call["index"] % whole + 1
    elif name in ("slice", "narrow"):
        low, high = _stretch(call, whole)
        if high - low == 1:
            yield low, high
    elif name in ("index", "index_select", "gather"):
        index = call["index"] if name != "index" else next(filter(None, call["indices"]))
        read = _constant(index, program)
        for position in read if len(read) == 1 or len(read) * _PART <= whole else ():
            yield position % whole, position % whole + 1
    else:
        yield from _used_pieces(call)


def _stretch(call: Call, whole: int) -> tuple[int, int]:
    if call.name == "aten.narrow":
        start, length = call["start"], call["length"]
        known = isinstance(start, int) and isinstance(length, int)
        return (start % whole, start % whole + length) if known else (0, 0)
    start, end = call["start"] or 0, whole if call["end"] is None else call["end"]
    if not isinstance(start, int) or not isinstance(end, int) or call["step"] != 1:
        return 0, 0
    low, high = (min(max(v + whole if v < 0 else v, 0), whole) for v in (start, end))
    return low, high


def _constant(index: Node, program: Program, most: int = _FEW) -> tuple[int, ...]:
    """The numbers in an index that the program makes without inputs, up to ``most``."""
    value = tensor_value(index)
    if value is None or value.is_floating_point() or value.dtype is torch.bool:
        return ()
    if value.device.type != "cpu" or any(not isinstance(size, int) for size in value.shape):
        return ()
    if value.numel() > most or index in program.of_images:
        return ()
    known = value_of(index, program.constants)
    return () if known is None else tuple(dict.fromkeys(known.flatten().tolist()))


def _used_pieces(call: Call) -> Iterator[tuple[int, int]]:
    """Positions that a split gives one by one, if some of its pieces are not looked at."""
    value = call.node.meta["val"]
    if call.name == "aten.unbind":
        sizes = [1] * len(value)
    else:
        sizes = [int(piece.shape[call.get("dim", 0)]) for piece in value]
    used = {
        user.args[1] for user in call.node.users if user.target is operator.getitem and user.users
    }
    ends = list(itertools.accumulate(sizes))
    alone = call.name != "aten.unbind" or len(used) < len(sizes)
    for index, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        if index in used and size == 1 and alone:
            yield end - 1, end


# An index of a fourth of all positions is a part of the image, and what one leaves out likewise.
_PART = 4
_READS = ("select", "slice", "narrow", "index", "index_select", "gather", "unbind", "split",
          "split_with_sizes", "chunk", "tensor_split")  # fmt: skip
