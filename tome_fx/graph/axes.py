"""The types of tensor axes.

An axis is an ordered product of *factors*; order is part of the type, so ``(B, H)`` and ``(H, B)``
are different axes of the same extent. The factors are

- :class:`Batch`: the images of a call,
- :class:`Atom`: a plain integer that remembers where it was born (a convolution's row, a linear's
  output channel, ...), so that two axes are the same only if they have the same history,
- :class:`Frames`: an atom, the frames of each image, whose tokens merge frame by frame,
- :class:`Stream`: patch tokens after ``level`` merges, intensive or extensive,
- :class:`GridAxis`: one of neighbouring axes that patch tokens are spread over (``[b, h, w, c]``),
- :class:`Concat`: the pieces of a ``cat``; ``[CLS, patches]`` is ``Concat(((1,), (Stream,)))``.

Every factor has an *extent* (what the captured program holds) and a *count* (what the rewritten
program holds). They differ only where a stream has merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias


@dataclass(frozen=True)
class Batch:
    """The batch axis. ``extent`` is a stand-in for the symbolic size, or a static size."""

    extent: int


@dataclass(frozen=True)
class Origin:
    """Where a plain factor was born: ``kind`` at ``node``, the ``place``-th one there.

    Kinds: ``input``, ``conv`` (a convolution's spatial axis), ``channel`` (a linear's or
    convolution's output channel), ``constant`` (a parameter or buffer), ``literal`` (a size written
    in the program, with the same value at each position), ``images`` (several images side by side
    on the axis of the images), ``copies`` (several values of one, there too), ``frames`` (several
    images on an axis of their own), ``border`` (copies of an axis's own positions, put around it),
    ``unknown`` (an op without a rule). ``whole``: at an input of whole numbers: places of tokens?
    """

    kind: str
    node: str
    place: tuple[int, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Atom:
    """A plain factor of ``extent`` with a history."""

    extent: int
    origin: Origin


@dataclass(frozen=True)
class Frames(Atom):
    """Frames of a clip, or views or crops of a sample, each with groups of its own."""


@dataclass(frozen=True)
class Stream:
    """Patch tokens: ``extent`` of them in the original, ``count`` after ``level`` merges.

    An *intensive* value is per member of a group (features, logits); an *extensive* one is the
    group's total (attention probabilities along the keys). ``per``: what each plan is for, images
    and frames in this order; empty for images alone.
    """

    id: int
    extent: int
    level: int = 0
    merged: int = 0
    extensive: bool = False
    per: tuple[Batch | Frames, ...] = ()

    @property
    def count(self) -> int:
        return self.extent - self.merged


@dataclass(frozen=True)
class GridAxis:
    """The ``place``-th of neighbouring axes of ``extents`` that tokens are spread over in order.

    ``row`` is what they are on one axis. Merged tokens are no grid: the first of the axes then
    holds all of them, each other axis one.
    """

    row: Stream | Concat
    extents: tuple[int, ...]
    place: int

    @property
    def extent(self) -> int:
        return self.extents[self.place]

    @property
    def count(self) -> int:
        if not is_merged_axis((self.row,)):
            return self.extent
        return 1 if self.place else factor_count(self.row)


@dataclass(frozen=True)
class Concat:
    """The pieces of a concatenation, in order; a piece is itself an axis."""

    parts: tuple[Axis, ...]

    @cached_property
    def extent(self) -> int:
        return sum(extent(part) for part in self.parts)

    @cached_property
    def count(self) -> int:
        return sum(count(part) for part in self.parts)


Factor: TypeAlias = Batch | Atom | Stream | GridAxis | Concat
Axis: TypeAlias = tuple[Factor, ...]


@dataclass(frozen=True)
class TensorType:
    """The axes of a tensor."""

    axes: tuple[Axis, ...]

    @property
    def rank(self) -> int:
        return len(self.axes)

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """Every stream, axis by axis."""
        return tuple(stream for axis in self.axes for stream in streams_of_axis(axis))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The streams by number, each row and column of a grid of tokens as one."""
        rows = (axis for axis in self.axes if leads(axis))
        return tuple(stream.id for axis in rows for stream in streams_of_axis(axis))

    def __str__(self) -> str:
        return "[" + ", ".join(show_axis(axis) for axis in self.axes) + "]"


def extent(axis: Axis) -> int:
    """Size of ``axis`` in the captured program."""
    return math.prod(factor.extent for factor in axis)


def count(axis: Axis) -> int:
    """Size of ``axis`` in the rewritten program (the batch's stand-in included)."""
    return math.prod(factor_count(factor) for factor in axis)


def factor_count(factor: Factor) -> int:
    return factor.extent if isinstance(factor, (Batch, Atom)) else factor.count


def lifted_shape(type_: TensorType) -> list[int]:
    """The sizes of ``type_`` in the rewritten program, -1 for the axis with the batch."""
    return [-1 if has_batch(axis) else count(axis) for axis in type_.axes]


def streams_of_axis(axis: Axis) -> Iterator[Stream]:
    """Every stream in ``axis``, inside concatenations too; each axis of a grid holds its stream."""
    for factor in axis:
        if isinstance(factor, Stream):
            yield factor
        elif isinstance(factor, GridAxis):
            yield from streams_of_axis((factor.row,))
        elif isinstance(factor, Concat):
            for part in factor.parts:
                yield from streams_of_axis(part)


def leads(axis: Axis) -> bool:
    """False for the axes of a grid behind its first: what concerns its tokens is said once."""
    found = axis[0] if len(axis) == 1 else None
    return not isinstance(found, GridAxis) or not found.place


def map_streams(axis: Axis, change: Callable[[Stream], Stream]) -> Axis:
    """``axis`` with ``change`` applied to each of its streams."""

    def visit(factor: Factor) -> Factor:
        if isinstance(factor, Stream):
            return change(factor)
        if isinstance(factor, GridAxis):
            (row,) = map_streams((factor.row,), change)
            assert isinstance(row, (Stream, Concat)), "a row of tokens stays one"
            return replace(factor, row=row)
        if isinstance(factor, Concat):
            return Concat(tuple(map_streams(part, change) for part in factor.parts))
        return factor

    return tuple(visit(factor) for factor in axis)


def map_type(type_: TensorType, change: Callable[[Stream], Stream]) -> TensorType:
    """``type_`` with ``change`` applied to each of its streams."""
    return TensorType(tuple(map_streams(axis, change) for axis in type_.axes))


def intensive(axis: Axis) -> Axis:
    """``axis`` as a per-member axis."""
    return map_streams(axis, lambda stream: replace(stream, extensive=False))


def unmerged(axis: Axis) -> Axis:
    """``axis`` with all its tokens, per member."""
    return map_streams(axis, lambda s: replace(s, level=0, merged=0, extensive=False))


def extensive(axis: Axis) -> Axis:
    """``axis`` as a group-total axis."""
    return map_streams(axis, lambda stream: replace(stream, extensive=True))


def is_extensive(axis: Axis) -> bool:
    return any(stream.extensive for stream in streams_of_axis(axis))


def has_stream(axis: Axis) -> bool:
    return any(True for _ in streams_of_axis(axis))


def is_uniform(axis: Axis) -> bool:
    """Is the value the same at each position of ``axis``, and are there several?"""
    plain = all(isinstance(f, Atom) and f.origin.kind == "literal" for f in axis)
    return plain and extent(axis) > 1


def has_batch(axis: Axis) -> bool:
    return any(isinstance(factor, Batch) for factor in axis)


def holds(axis: Axis, stream: int) -> bool:
    """Does ``axis`` hold the stream with this id?"""
    return any(found.id == stream for found in streams_of_axis(axis))


def axis_of(type_: TensorType, stream: int) -> Axis:
    """The first axis that holds the stream with this id."""
    return next(axis for axis in type_.axes if holds(axis, stream))


def is_merged_axis(axis: Axis) -> bool:
    """Does ``axis`` hold fewer tokens than the captured program has there?"""
    return any(stream.level for stream in streams_of_axis(axis))


def is_merged(type_: TensorType) -> bool:
    """Does any axis hold fewer tokens than the captured program has there?"""
    return any(map(is_merged_axis, type_.axes))


def batch_axis(type_: TensorType) -> int | None:
    """The axis that holds the batch, or None."""
    return next((i for i, axis in enumerate(type_.axes) if has_batch(axis)), None)


def token_factor(axis: Axis) -> Factor | None:
    """The one factor of ``axis`` that holds a stream, or None (also if there are several)."""
    found = [factor for factor in axis if has_stream((factor,))]
    return found[0] if len(found) == 1 else None


def pieces(factor: Factor) -> tuple[Axis, ...]:
    """The factor as a row of pieces: a concatenation's parts, or itself."""
    return factor.parts if isinstance(factor, Concat) else ((factor,),)


def show_axis(axis: Axis) -> str:
    """``B*12``, ``[1|S0:180]``: for listings and error texts."""
    return "*".join(_show(factor) for factor in axis) or "1"


def _show(factor: Factor) -> str:
    if isinstance(factor, Batch):
        return "B"
    if isinstance(factor, Frames):
        return f"F{factor.extent}"
    if isinstance(factor, Atom):
        return str(factor.extent)
    if isinstance(factor, Concat):
        return "[" + "|".join(show_axis(part) for part in factor.parts) + "]"
    if isinstance(factor, GridAxis):
        return f"{_show(factor.row)}/{factor.place}"
    kind = "+" if factor.extensive else ""
    return f"S{factor.id}.{factor.level}:{factor.count}{kind}"
