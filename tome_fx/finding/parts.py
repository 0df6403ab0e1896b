"""What a mask is put together from: where one of its parts hides, the whole does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from tome_fx.graph.calls import Call, bind
from tome_fx.graph.extents import tensor_value
from tome_fx.ops.padding import HIDDEN

Part = tuple[Node, bool]

_NOTS = ("aten.bitwise_not", "aten.logical_not")
_ANDS = ("aten.bitwise_and", "aten.logical_and", "aten.__and__", "aten.mul")
_ORS = ("aten.bitwise_or", "aten.logical_or", "aten.__or__", "aten.add")
# The same at the same places, in another form.
_FORMS = ("aten.unsqueeze", "aten.squeeze", "aten.expand", "aten.reshape", "aten.view",
          "aten.contiguous", "aten.clone", "aten.to", "aten._to_copy", "aten.clamp", "aten.alias",
          "aten.permute", "aten.transpose", "aten.flatten", "aten.unflatten", "aten.detach",
          "aten.repeat", "aten.repeat_interleave")  # fmt: skip
# Tensors of one number, by the argument that says it.
_NUMBERS = {"aten.full": "fill_value", "aten.full_like": "fill_value",
            "aten.new_full": "fill_value", "aten.scalar_tensor": "s"}  # fmt: skip


def parts_of(mask: Node, hides: bool = False) -> list[Part]:
    """A mask and its parts, the nearest first, each with whether True hides there.

    A mask of numbers is added to logits: what is very low hides.
    """
    found: dict[Part, None] = {(mask, hides): None}
    waiting = [(mask, hides)]
    while waiting:
        more = [part for part in _direct(*waiting.pop(0)) if part not in found]
        found.update(dict.fromkeys(more))
        waiting += more
    return list(found)


def last_parts_of(mask: Node, hides: bool = False) -> list[Part]:
    """Those of its parts that are put together from no others."""
    return [part for part in parts_of(mask, hides) if not any(True for _ in _direct(*part))]


def _direct(mask: Node, hides: bool) -> Iterator[Part]:
    if not isinstance(mask.target, torch._ops.OpOverload):
        return
    call, truth = bind(mask), _is_truth(mask)
    written = call.name.endswith("_") and not call.name.endswith("__")
    name = call.name.removesuffix("_") if written else call.name  # a table may be written to
    if truth and name in _NOTS:
        yield call["self"], not hides
    elif truth and name in (_ORS if hides else _ANDS):
        yield from ((n, hides) for n in mask.all_input_nodes if _is_truth(n))
    elif name in _FORMS:
        if _is_truth(call["self"]) == truth:
            yield call["self"], hides
    elif name in ("aten.masked_fill", "aten.where"):
        yield from _filled(name, call, truth, hides)
    elif not truth and name == "aten.add" and call.get("alpha") in (None, 1):
        yield from ((n, hides) for n in mask.all_input_nodes if not _is_truth(n))


def _filled(name: str, call: Call, truth: bool, hides: bool) -> Iterator[Part]:
    """What is filled with a value that hides, and where."""
    if name == "aten.masked_fill":
        condition, inside, outside = call["mask"], call["value"], call["self"]
    else:
        condition, inside, outside = call["condition"], call["self"], call["other"]
    for value, other, there in ((inside, outside, True), (outside, inside, False)):
        if _hides(value, truth, hides):
            yield condition, there
            if isinstance(other, Node) and _is_truth(other) == truth:
                yield other, hides


def _hides(value: Any, truth: bool, hides: bool) -> bool:
    """Is a value one number that hides?"""
    if isinstance(value, Node):
        call = bind(value) if isinstance(value.target, torch._ops.OpOverload) else None
        value = call.get(_NUMBERS.get(call.name, "")) if call is not None else None
    if isinstance(value, (Node, type(None))):
        return False
    return bool(value) == hides if truth else value < HIDDEN


def _is_truth(node: Node) -> bool:
    return getattr(tensor_value(node), "dtype", None) is torch.bool
