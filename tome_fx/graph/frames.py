"""Frames that have groups of their own: where they stand beside tokens, and as images.

    [B*F3, S0.0:16, C]     frames in the batch, as where each attends by itself
    [B, F3*S0.0:16, C]     the tokens of all frames in one row, as where all attend to each other
    [B, F3, S0.0:16, C]    or on an axis of their own

A stream that has frames has a plan for each of them. An op may move, cut or mix its tokens as far
as it may those of an image, for it is as if each frame were one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Factor,
    Frames,
    TensorType,
    axis_of,
    has_batch,
    has_stream,
    map_type,
    streams_of_axis,
)
from tome_fx.graph.grids import fused

# Kinds of frames: an axis of the input that no convolution has touched, images put side by side.
FRAMES = ("input", "frames", "images", "copies")
# Images and frames in the order that plans are for them; empty where those are for images alone.
Per: TypeAlias = tuple[Batch | Frames, ...]


def is_of(factor: Factor, kinds: Collection[str]) -> bool:
    """Is a factor an atom of one of these kinds?"""
    return isinstance(factor, Atom) and factor.origin.kind in kinds


def is_beside(factor: Factor) -> bool:
    """Is it images, frames or places: what may stand beside tokens, and is no feature of theirs?"""
    return isinstance(factor, Batch) or is_of(factor, (*FRAMES, "conv"))


def with_images(beside: Axis) -> Axis:
    """What plans are for, of what stands beside tokens; the one image of a program has no axis."""
    return beside if any(isinstance(f, Batch) for f in beside) else (Batch(1), *beside)


def per_of(type_: TensorType) -> Per:
    """What each plan is for that the tokens of a value merge by."""
    return next((stream.per for stream in type_.streams if stream.per), ())


def frames_of(type_: TensorType) -> tuple[Frames, ...]:
    """The frames that the tokens of a value have groups of their own in."""
    return frames_in(per_of(type_))


def frames_in(per: Axis) -> tuple[Frames, ...]:
    return tuple(factor for factor in per if isinstance(factor, Frames))


def keeps_frames(type_: TensorType) -> bool:
    """Does each token stand once in each of its frames, on their axis or beside it?"""
    per = per_of(type_)
    if any(stream.per != per for stream in type_.streams):
        return False  # a plan for each frame, and one for each image
    return all(_stand_once(fused(type_), frames) for frames in frames_in(per))


def _stand_once(type_: TensorType, frames: Frames) -> bool:
    rows = [axis for axis in type_.axes if has_stream(axis)]
    rest = [axis for axis in type_.axes if axis not in rows]
    here = [axis.count(frames) for axis in rows]
    elsewhere = sum(axis.count(frames) for axis in rest)
    return elsewhere == (0 if all(n == 1 for n in here) else 1) and len(set(here)) == 1


def mixes_images(type_: TensorType, axes: Iterable[int]) -> bool:
    """Would an op along ``axes`` mix images, or frames with groups of their own, place by place?"""
    known = frames_of(type_)
    found = [type_.axes[place] for place in axes]
    return any(map(has_batch, found)) or any(
        frames in axis and not has_stream(axis) for axis in found for frames in known
    )


def meet_in_frames(row: Axis, other: Axis, beside: Iterable[tuple[Axis, Axis]]) -> bool:
    """Do rows of tokens that a product sums over meet frame by frame?

    Args:
        beside: the axes that both operands have, the rows among them.
    """
    ids, pairs = {stream.id for stream in streams_of_axis(other)}, list(beside)
    return all(
        any(frames in one and frames in two for one, two in pairs)
        for stream in streams_of_axis(row)
        if stream.id in ids
        for frames in frames_in(stream.per)
    )


def as_frames(axis: Axis, atoms: Axis) -> Axis:
    """``axis`` with those of its factors that are among ``atoms`` called frames."""
    return tuple(
        Frames(f.extent, f.origin) if f in atoms and isinstance(f, Atom) else f for f in axis
    )


def without_frames(axis: Axis) -> Axis:
    """``axis`` with its frames called plain atoms."""
    return tuple(Atom(f.extent, f.origin) if isinstance(f, Frames) else f for f in axis)


def frames_like(axis: Axis, goal: Axis) -> Axis:
    """``axis`` with its atoms called the frames that ``goal`` has in their places."""
    if len(axis) != len(goal):
        return axis
    return tuple(
        other if isinstance(other, Frames) and _is_long_as(own, other) else own
        for own, other in zip(axis, goal, strict=True)
    )


def called_frames(type_: TensorType, names: Mapping[Atom, Frames]) -> TensorType:
    """``type_`` with atoms that have the ``names`` of frames called so."""
    return TensorType(
        tuple(
            tuple(names.get(f, f) if isinstance(f, Atom) else f for f in axis)
            for axis in type_.axes
        )
    )


def _is_long_as(factor: Factor, frames: Frames) -> bool:
    return isinstance(factor, Atom) and factor.extent == frames.extent


def as_images(type_: TensorType, per: Per) -> TensorType:
    """``type_`` with the frames of ``per`` counted as images, of the same rank."""
    frames = frames_in(per)
    several = math.prod(f.extent for f in frames)

    def change(factor: Factor) -> Axis:
        if isinstance(factor, Batch):
            return (Batch(factor.extent * several),)
        return () if factor in frames else (factor,)

    axes = tuple(tuple(f for own in axis for f in change(own)) for axis in type_.axes)
    return map_type(TensorType(axes), lambda stream: replace(stream, per=()))


def row_of(type_: TensorType, stream: int) -> Axis:
    """The axis of the tokens of a stream, where its frames are images."""
    return axis_of(as_images(type_, per_of(type_)), stream)
