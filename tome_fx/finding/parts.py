"""What a mask is put together from: where one of its parts hides, the whole does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from tome_fx.graph.calls import Call, bind, calls
from tome_fx.graph.extents import is_truth, tensor_value
from tome_fx.ops.padding import HIDDEN

_NOTS = ("aten.bitwise_not", "aten.logical_not")
_ANDS = ("aten.bitwise_and", "aten.logical_and", "aten.__and__", "aten.mul")
_ORS = ("aten.bitwise_or", "aten.logical_or", "aten.__or__", "aten.add")
_SAME = ("aten.contiguous", "aten.clone", "aten.to", "aten._to_copy", "aten.alias", "aten.detach",
         "aten.expand")  # fmt: skip
_PADS = ("aten.pad", "aten.constant_pad_nd")
_SHAPED = ("aten.reshape", "aten.view", "aten.flatten", "aten.unflatten")
_ORDERED = ("aten.permute", "aten.transpose")
# Tensors of one number, by the argument that says it.
_NUMBERS = {"aten.full": "fill_value", "aten.full_like": "fill_value",
            "aten.new_full": "fill_value", "aten.scalar_tensor": "s"}  # fmt: skip


class Part(NamedTuple):
    """A part of a mask.

    Attributes:
        node: its value; one of numbers is added to logits, and hides where it is very low.
        hides: does True hide there?
        own: how many of its last axes are those of the mask: 2 for queries and keys, 1 for keys.
    """

    node: Node
    hides: bool = False
    own: int = 2


def parts_of(mask: Node, hides: bool = False, whole: Collection[Node] = ()) -> list[Part]:
    """A mask and its parts, the nearest first; those in ``whole`` without what they are made of."""
    found = {Part(mask, hides): None}
    waiting = [*found]
    while waiting:
        part = waiting.pop(0)
        more = [] if part.node in whole else [p for p in _direct(part) if p not in found]
        found.update(dict.fromkeys(more))
        waiting += more
    return list(found)


def last_parts_of(mask: Node, hides: bool = False, whole: Collection[Node] = ()) -> list[Part]:
    """Those of its parts that are put together from no others, and those in ``whole``."""
    parts = parts_of(mask, hides, whole)
    return [p for p in parts if p.node in whole or not any(True for _ in _direct(p))]


def _direct(part: Part) -> Iterator[Part]:
    mask, hides, own = part
    if not isinstance(mask.target, torch._ops.OpOverload):
        return
    call, truth = bind(mask), is_truth(mask)
    written = call.name.endswith("_") and not call.name.endswith("__")
    name = call.name.removesuffix("_") if written else call.name  # a table may be written to
    if truth and name in _NOTS:
        yield Part(call["self"], not hides, own)
    elif truth and name in (_ORS if hides else _ANDS):
        yield from (Part(n, hides, own) for n in mask.all_input_nodes if is_truth(n))
    elif name in ("aten.masked_fill", "aten.where"):
        yield from _filled(name, call, truth, part)
    elif not truth and name == "aten.add" and call.get("alpha") in (None, 1):
        yield from (Part(n, hides, own) for n in mask.all_input_nodes if not is_truth(n))
    elif name == "aten.cat" and _is_last(call["dim"], mask):
        # Of keys that are tokens, and of others: a sink, memory. Each may be all that is asked for.
        yield from (Part(n, hides, own) for n in mask.all_input_nodes if is_truth(n) == truth)
    elif name in _PADS and len(call["pad"]) == 2:
        yield Part(call["self"], hides, own)
    elif not truth and name == "aten.mul":
        cast, times = call["self"], call["other"]
        low = isinstance(times, (int, float)) and times < HIDDEN
        if low and calls(cast, ("aten.to", "aten._to_copy")) and is_truth(bind(cast)["self"]):
            yield Part(bind(cast)["self"], True, own)
    else:
        source = call.get("self")
        kept = _kept(name, call) if isinstance(source, Node) else 0
        if kept and is_truth(source) == truth:
            yield Part(source, hides, min(own, kept))


def _is_last(dim: int, value: Node) -> bool:
    made = tensor_value(value)
    return made is not None and dim % made.dim() == made.dim() - 1


def _filled(name: str, call: Call, truth: bool, part: Part) -> Iterator[Part]:
    """What is filled with a value that hides, and where."""
    if name == "aten.masked_fill":
        condition, inside, outside = call["mask"], call["value"], call["self"]
    else:
        condition, inside, outside = call["condition"], call["self"], call["other"]
    for value, other, there in ((inside, outside, True), (outside, inside, False)):
        if _hides(value, truth, part.hides):
            yield Part(condition, there, part.own)
            if isinstance(other, Node) and is_truth(other) == truth:
                yield Part(other, part.hides, part.own)


def _hides(value: Any, truth: bool, hides: bool) -> bool:
    """Is a value one number that hides?"""
    if isinstance(value, Node):
        call = bind(value) if isinstance(value.target, torch._ops.OpOverload) else None
        value = call.get(_NUMBERS.get(call.name, "")) if call is not None else None
    if isinstance(value, (Node, type(None))):
        return False
    return bool(value) == hides if truth else value < HIDDEN


def _kept(name: str, call: Call) -> int:
    """How many of the last axes of what an op is given are those of what it gives, up to 2."""
    before, after = tensor_value(call["self"]), tensor_value(call.node)
    if before is None or after is None:
        return 0
    if name in _SAME:
        return 2
    if name == "aten.clamp":  # which may leave nothing that hides
        least = call.get("min")
        return 2 if least is None or (isinstance(least, (int, float)) and least < HIDDEN) else 0
    if name == "aten.unsqueeze":
        return min(2, after.dim() - 1 - int(call["dim"]) % after.dim())
    if name == "aten.squeeze" and isinstance(call.get("dim"), int):
        return min(2, before.dim() - 1 - int(call["dim"]) % before.dim())
    if name in _SHAPED:
        return _alike(before.shape, after.shape)
    if name in _ORDERED:
        order = list(range(after.dim()))
        if name == "aten.permute":
            order = [dim % after.dim() for dim in call["dims"]]
        else:
            one, two = (call[dim] % after.dim() for dim in ("dim0", "dim1"))
            order[one], order[two] = two, one
        return _alike(order, range(after.dim()))
    if name == "aten.repeat":
        return _alike([times == 1 for times in call["repeats"]], [True, True])
    if name == "aten.repeat_interleave" and isinstance(call.get("dim"), int):
        return min(2, after.dim() - 1 - int(call["dim"]) % after.dim())
    return 0


def _alike(before: Sequence[Any], after: Sequence[Any]) -> int:
    """How many of the last entries are alike, up to 2. Sizes by their text: none is guarded on."""
    same = (str(a) == str(b) for a, b in zip(reversed(before), reversed(after), strict=False))
    return min(2, len([*takewhile(bool, same)]))
