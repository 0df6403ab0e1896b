"""What a mask is about, by its axes: the keys of each image, or which of its tokens see which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Frames,
    TensorType,
    batch_axis,
    extent,
    factor_count,
    has_batch,
    has_stream,
    is_uniform,
)
from tome_fx.graph.frames import Per, as_images, called_frames
from tome_fx.graph.single import of_one
from tome_fx.program import Program


def mask_type(mask: Node, types: Sequence[TensorType], program: Program) -> TensorType | None:
    """What a mask is, with an axis of images also where it is that of the only one."""
    if not types:
        return None
    own = program.one_image and mask in program.of_images and batch_axis(types[0]) is None
    return of_one(types[0]) if own else types[0]


def of_frames(type_: TensorType, per: Per, names: Mapping[Atom, Frames]) -> TensorType:
    """A mask's type where frames that have groups of their own, by their ``names``, are images."""
    return as_images(called_frames(type_, names), per)


def _of_images(axis: Axis) -> bool:
    """Images, each of them one or several times: on the axis of images and heads, say."""
    return bool(axis) and isinstance(axis[0], Batch) and (len(axis) == 1 or is_uniform(axis[1:]))


def row_of_images(type_: TensorType, keys: Axis, own: int = 2) -> TensorType | None:
    """A mask's type with its last axis about ``keys``, if it is one row for each image.

    Or one for each of its views, frames or heads, which all have the same tokens: what they do not
    share stays an axis.

    Args:
        own: of how many of its last axes something is known: of 2 the other is of the queries.
    """
    if not type_.rank or not _is_about(type_.axes[-1], keys):
        return None
    around, images = [], 0
    for place, axis in enumerate(type_.axes[:-1]):
        images += has_batch(axis)
        single = extent(axis) == 1 or is_uniform(axis)
        of_queries = own > 1 and place == type_.rank - 2 and not has_batch(axis)
        if not single and (has_stream(axis) or of_queries):
            return None
        around.append(() if single else axis)
    return TensorType((*around, keys)) if images == 1 else None


def views_of(goal: TensorType) -> tuple[int, ...]:
    """The extents of what a row is repeated for, if it differs between some: views or heads."""
    around = [f for axis in goal.axes[:-1] for f in axis if not isinstance(f, Batch)]
    return () if all(is_uniform((f,)) for f in around) else tuple(map(factor_count, around))


def pairs_of_images(type_: TensorType, keys: Axis) -> TensorType | None:
    """A mask's type with its last two axes about ``keys``, if it has a row for each of them."""
    around = _around(type_.axes[:-2]) if type_.rank > 2 else None
    if around is None or not all(_is_about(axis, keys) for axis in type_.axes[-2:]):
        return None
    return TensorType((*around, keys, keys))


def _around(axes: tuple[Axis, ...]) -> list[Axis] | None:
    """The axes in front of those of tokens: images, and what is the same for all heads."""
    found: list[Axis] = []
    images = 0
    for axis in axes:
        images += has_batch(axis)
        single = extent(axis) == 1 or is_uniform(axis)
        if not single and not _of_images(axis):
            return None
        found.append(() if single else axis)
    return found if images == 1 else None


def _is_about(axis: Axis, keys: Axis) -> bool:
    """Could an axis of a mask be that of the keys: is it theirs, or as long and of no tokens?"""
    if extent(axis) != extent(keys) or is_uniform(axis) or has_batch(axis):
        return False
    return not has_stream(axis) or [len(axis), extent(axis)] == [len(keys), extent(keys)]
