"""Programs for one image: its values need no axis of images, and parts of a row may be images.

Several images may be packed in one row of tokens, as Qwen-VL has them; attention then looks at a
stretch of the row at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from tome_fx.graph.axes import Atom, Axis, Batch, Origin, TensorType, extent, has_batch, has_stream
from tome_fx.graph.regroup import axis_kind, factor_kind


def stretch(row: Axis, start: int, end: int) -> Axis:
    """A part of a plain row of places, by a name that is the same wherever it is cut."""
    if end <= start + 1:
        return ()
    name = row_name(row)
    return (Atom(end - start, replace(name, place=(*name.place, start, end))),)


def stretch_of(part: Axis, row: Axis) -> tuple[int, int] | None:
    """Where a :func:`stretch` begins and ends in ``row``; None if it is none of it."""
    name, start, end = cut_from(part) or (None, 0, 0)
    own = name is not None and is_plain_row(row) and end <= extent(row)
    return (start, end) if own and name == row_name(row) else None


def cut_from(part: Axis) -> tuple[Origin, int, int] | None:
    """The name of the row that a :func:`stretch` is of, its begin and its end; None if it is none.

    A name alone tells: another factor may look like a stretch of a row that there is not.
    """
    atom = part[0] if len(part) == 1 else None
    if not isinstance(atom, Atom) or len(atom.origin.place) < 2:
        return None
    *places, start, end = atom.origin.place
    if atom.extent != end - start:
        return None
    return replace(atom.origin, place=tuple(places)), start, end


def row_name(row: Axis) -> Origin:
    """The name that a plain row of places has for what is cut from it."""
    atoms = [factor for factor in row if isinstance(factor, Atom)]
    places = itertools.chain.from_iterable(atom.origin.place for atom in atoms)
    return Origin(axis_kind(row), "*".join(atom.origin.node for atom in atoms), tuple(places))


def is_plain_row(axis: Axis) -> bool:
    """Is it nothing but factors with histories of their own, as plain tokens are?"""
    return bool(axis) and all(isinstance(factor, Atom) for factor in axis)


def framed(type_: TensorType) -> TensorType:
    """``type_`` with the batch on an axis of 1 in front, unless that is another or not there.

    What stood in front may have been a head: of two such axes the first is the batch.
    """
    if not type_.rank or type_.axes[0]:
        return type_
    rest = ((() if axis == (Batch(1),) else axis) for axis in type_.axes[1:])
    held = any(has_batch(axis) and axis != (Batch(1),) for axis in type_.axes)
    return type_ if held else TensorType(((Batch(1),), *rest))


def of_one(type_: TensorType) -> TensorType:
    """A value of the one image of a program, with an axis of images in front."""
    return TensorType(((Batch(1),), *type_.axes))


def is_of_one(type_: TensorType, channel: int | None = None) -> bool:
    """Is a value nothing but tokens and channels, without another axis that could be of images?"""
    others = (axis for i, axis in enumerate(type_.axes) if i != channel and not has_stream(axis))
    return all(extent(axis) == 1 or set(map(factor_kind, axis)) == {"channel"} for axis in others)
