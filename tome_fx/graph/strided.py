"""``as_strided`` by what it means: the places of its operand that it reads, not those of a memory.

``functorch.einops.rearrange`` reaches a graph so, and code that cuts windows by hand. What merged,
and what came back from it, lies otherwise in memory than the model's values did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Node

from tome_fx.errors import CaptureError
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.emitting import emit
from tome_fx.graph.extents import Extents, settled
from tome_fx.graph.provenance import source_line

aten = torch.ops.aten
# What asks that its operand lies in memory in one way, and becomes a reshape, which does not.
VIEWED = (aten.view.default, aten._unsafe_view.default)
STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)
# What shows the memory of its operand.
_SHOWN = (
    "aten.transpose", "aten.mT", "aten.permute", "aten.unsqueeze", "aten.squeeze",
    "aten.slice", "aten.select", "aten.expand", "aten.detach", "aten.alias",
)  # fmt: skip


@dataclass(frozen=True)
class _Axis:
    """``size`` places, each ``step`` numbers of memory behind the one before, on axis ``dim``."""

    size: int
    step: int
    dim: int


def write_strided(node: Node, images: Collection[Node]) -> None:
    """``as_strided(x, ..)`` as a reshape between two permutations, or as a choice by an index.

    Args:
        images: what is made of inputs. All else goes on lying in memory as it did.

    Raises:
        CaptureError: it reads more than what some op of the program has yielded, or writes so.
    """
    call, extents = bind(node), Extents()
    source, value = call["self"], node.meta["val"]
    if node.target is not aten.as_strided.default:
        if source in images:
            raise _too_far(node)
        return
    shown = _axes(value, extents)
    start = extents.of(value.storage_offset())
    if start == extents.of(source.meta["val"].storage_offset()):
        held = _axes(source.meta["val"], extents)
        if _runs(held) == _runs(shown):
            _rearrange(node, source, held, shown, call["size"])
            return
    if 0 in map(extents.of, value.shape):
        return  # it reads nothing
    while not _is_dense(source.meta["val"], extents) and _shows(source, extents):
        source = source.args[0]
    if source.op != "call_function":
        return  # as it was given, or made once: so is its memory
    dense = _is_dense(source.meta["val"], extents)
    if not (dense and _choose(node, source, extents)) and source in images:
        raise _too_far(node)


def _shows(node: Node, extents: Extents) -> bool:
    """Does a value lie in the memory of what it is made of?"""
    if not calls(node, ("aten.reshape",)):
        return calls(node, _SHOWN)
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    starts = [extents.of(value.storage_offset()) for value in (before, after)]
    return starts[0] == starts[1] and _runs(_axes(before, extents)) == _runs(_axes(after, extents))


def _too_far(node: Node) -> CaptureError:
    return CaptureError(
        f"as_strided depends on how its operand lies in memory, which merging changes: "
        f"{source_line(node)}. Cut it by slices, unfold or reshape."
    )


def _axes(value: Tensor, extents: Extents) -> list[_Axis]:
    """The axes of more than one place, the outermost in memory first."""
    pairs = zip(map(extents.of, value.shape), map(extents.of, value.stride()), strict=True)
    axes = [_Axis(size, step, dim) for dim, (size, step) in enumerate(pairs) if size != 1]
    return sorted(axes, key=lambda axis: -axis.step)


def _runs(axes: Sequence[_Axis]) -> list[tuple[int, int]]:
    """Sizes and steps, where what lies within another without a gap is one with it."""
    runs: list[tuple[int, int]] = []
    for axis in axes:
        if runs and runs[-1][1] == axis.size * axis.step:
            runs[-1] = runs[-1][0] * axis.size, axis.step
        else:
            runs.append((axis.size, axis.step))
    return runs


def _is_dense(value: Tensor, extents: Extents) -> bool:
    """Does each place of its memory, from the first on, hold one of its numbers?"""
    places = prod(map(extents.of, value.shape))
    whole = _runs(_axes(value, extents)) in ([], [(places, 1)])
    return whole and extents.of(value.storage_offset()) == 0


def _rearrange(
    node: Node, source: Node, held: Sequence[_Axis], shown: Sequence[_Axis], size: Sequence[Any]
) -> None:
    """Both in the order of memory are the same numbers."""
    with node.graph.inserting_before(node):
        row = _in_order(node, source, held)
        split = _call(node, aten.reshape.default, row, [size[axis.dim] for axis in shown])
        placed = _call(node, aten.permute.default, split, _back(shown))
    node.target, node.args, node.kwargs = aten.reshape.default, (placed, list(size)), {}


def _choose(node: Node, source: Node, extents: Extents) -> bool:
    """The numbers that it reads, by their places in memory; False if these are not known."""
    value, whole = node.meta["val"], source.meta["val"]
    held, shown = _axes(whole, extents), _axes(value, extents)
    open_held, open_shown = (
        [axis for axis in axes if not isinstance(settled(tensor.shape[axis.dim]), int)]
        for axes, tensor in ((held, whole), (shown, value))
    )
    pairs = [[(axis.size, axis.step) for axis in axes] for axes in (open_held, open_shown)]
    start = extents.of(value.storage_offset())
    if pairs[0] != pairs[1] or open_held != held[: len(open_held)] or len(open_held) > 1:
        return False
    inner = [axis for axis in shown if axis not in open_shown]
    places = prod(axis.size for axis in held[len(open_held) :])
    last = start + sum((axis.size - 1) * axis.step for axis in inner)
    if not 0 <= last < places:
        return False
    size = bind(node)["size"]
    with node.graph.inserting_before(node):
        images = [size[axis.dim] for axis in open_shown]
        row = _call(node, aten.reshape.default, _in_order(node, source, held), [*images, places])
        options = {"dtype": torch.int64, "device": whole.device}
        index = _call(node, aten.full.default, [1], start, **options)
        for axis in inner:
            steps = _call(node, aten.arange.default, axis.size, **options)
            far = _call(node, aten.mul.Tensor, steps, axis.step)
            sums = _call(node, aten.add.Tensor, _call(node, aten.unsqueeze.default, index, -1), far)
            index = _call(node, aten.reshape.default, sums, [-1])
        chosen = _call(node, aten.index_select.default, row, len(images), index)
        order = [*open_shown, *inner]
        split = _call(node, aten.reshape.default, chosen, [size[axis.dim] for axis in order])
        placed = _call(node, aten.permute.default, split, _back(order))
    node.target, node.args, node.kwargs = aten.reshape.default, (placed, list(size)), {}
    return True


def _in_order(node: Node, source: Node, axes: Sequence[_Axis]) -> Node:
    """``source`` with its axes in the order of memory, and those of one place last."""
    order = [axis.dim for axis in axes]
    rest = [dim for dim in range(source.meta["val"].dim()) if dim not in order]
    return _call(node, aten.permute.default, source, [*order, *rest])


def _back(axes: Sequence[_Axis]) -> list[int]:
    """What puts axes that stand in the order of memory in that of their numbers."""
    dims = [axis.dim for axis in axes]
    return [dims.index(dim) for dim in sorted(dims)]


def _call(reader: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    return emit(reader, detect_fake_mode([reader.meta["val"]]), target, *args, **kwargs)
