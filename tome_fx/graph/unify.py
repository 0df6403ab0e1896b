"""When two axes that meet in one op are the same axis, and which of the two says more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Factor,
    Frames,
    GridAxis,
    Origin,
    Stream,
    TensorType,
    extent,
    has_batch,
    has_stream,
    intensive,
    is_merged_axis,
    is_uniform,
    pieces,
    unmerged,
)
from tome_fx.graph.single import stretch_of

# What a plain axis's history is worth when two histories meet: data indexed by an axis (a
# parameter, a written size) takes the name of the axis that it indexes.
_WORTH = {"conv": 4, "input": 4, "channel": 3, "unknown": 2, "constant": 1, "literal": 0}
# An input of whole numbers may be positions, by which a table is looked up for the tokens.
_WHOLE = 3.9


def unify(left: Axis, right: Axis) -> Axis | None:
    """The axis that both are, or None if they are two different axes.

    Axes of different extent never unify. A plain axis takes the meaning of a typed one of the same
    extent: it is data indexed by it. Two typed axes must hold the same streams at the same places.
    The kind (intensive or extensive) is not compared; of two kinds the result is intensive.
    """
    if left == right:
        return left
    if extent(left) != extent(right):
        return None
    if _plain(left) or _plain(right):
        return None if _is_reordered(left, right) else _worthier(left, right)
    if segments(left) == segments(right):
        named_frames = any(isinstance(factor, Frames) for factor in right)
        return intensive(right if named_frames else left)
    for axis, other in ((left, right), (right, left)):
        if is_written_out(axis, other):
            return intensive(other)
    return None


def _is_reordered(left: Axis, right: Axis) -> bool:
    """Do both hold the same tokens at different places: a row, and its stretches in another order?

    Halves that change places, say. What is added then is a token and another one.
    """
    for row, axis in ((left, right), (right, left)):
        start = 0
        for part in _parts(axis):
            place = stretch_of(part, row)
            if place is not None and place[0] != start:
                return True
            start += extent(part)
    names = [[part for part in _parts(axis) if part] for axis in (left, right)]
    return (
        names[0] != names[1] and len(names[0]) == len(names[1]) and set(names[0]) == set(names[1])
    )


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return pieces(axis[0]) if len(axis) == 1 else ()


def is_written_out(axis: Axis, tokens: Axis) -> bool:
    """Is it a value of each image, several times, on an axis of images and ``tokens``?

    By ``repeat_interleave``, say, or ``expand`` and ``reshape``.
    """
    return (
        len(axis) == len(tokens)
        and has_batch(axis)
        and has_stream(tokens)
        and all(
            is_uniform((own,)) and extent((own,)) == extent((other,))
            if has_stream((other,))
            else _segment(own) == _segment(other)
            for own, other in zip(axis, tokens, strict=True)
        )
    )


def named(axis: Axis, target: Axis) -> Axis:
    """A plain axis as the tokens and images of ``target``, unmerged; so the pieces of a row."""
    if extent(axis) == 1 or _plain(target):
        return axis
    if _plain(axis):
        return unmerged(target)
    own, goal = _parts(axis), _parts(target)
    if len(own) < 2 or list(map(extent, own)) != list(map(extent, goal)):
        return axis
    return (Concat(tuple(named(one, other) for one, other in zip(own, goal, strict=True))),)


def repeated(have: TensorType, want: TensorType) -> bool:
    """Is a value of type ``have`` the same at all tokens that ``want`` has merged?"""
    pairs = zip(have.axes, want.axes, strict=False)
    return have.rank == want.rank and all(
        is_uniform(a) or is_written_out(a, b) for a, b in pairs if is_merged_axis(b)
    )


def unify_all(axes: Iterable[Axis]) -> Axis | None:
    """:func:`unify` over several axes; None as soon as two differ. ``()`` of nothing."""
    result: Axis | None = None
    for axis in axes:
        result = axis if result is None else unify(result, axis)
        if result is None:
            return None
    return () if result is None else result


def broadcast(types: Sequence[TensorType]) -> TensorType | None:
    """The type that broadcasting ``types`` makes (aligned at the last axis), or None.

    An axis of extent 1 gives way to any other. Of two names that are worth the same, the one of a
    value with images stays: the other value is a table for its places.
    """
    rank = max((type_.rank for type_ in types), default=0)
    types = sorted(types, key=lambda type_: not any(map(has_batch, type_.axes)))
    axes: list[Axis] = []
    for position in range(-rank, 0):
        here = [type_.axes[position] for type_ in types if type_.rank >= -position]
        wide = [axis for axis in here if extent(axis) != 1]
        axis = unify_all(wide) if wide else max(here, key=len)
        if axis is None:
            return None
        axes.append(axis)
    return TensorType(tuple(axes))


def segments(axis: Axis) -> tuple[object, ...]:
    """What an axis is, whatever its plain pieces are called: neighbouring plain pieces add up."""
    return tuple(_segment(factor) for factor in axis)


def _segment(factor: Factor) -> object:
    if isinstance(factor, Atom):
        return factor.extent
    if isinstance(factor, Stream):
        return (factor.id, factor.level, factor.extent)
    if isinstance(factor, GridAxis):
        return (_segment(factor.row), factor.extents, factor.place)
    if not isinstance(factor, Concat):
        return factor
    row: list[object] = []
    for part in pieces(factor):
        if has_stream(part) or has_batch(part):
            row.append(segments(part))
        elif row and isinstance(row[-1], int):
            row[-1] = row[-1] + extent(part)
        else:
            row.append(extent(part))
    alone = row[0] if len(row) == 1 else None  # pieces of a plain axis are one
    return alone if isinstance(alone, int) else tuple(row)


def _plain(axis: Axis) -> bool:
    return not has_stream(axis) and not has_batch(axis)


def _worthier(left: Axis, right: Axis) -> Axis:
    return left if _worth(left) >= _worth(right) else right


def _worth(axis: Axis) -> float:
    if not _plain(axis):
        return 10.0
    if any(isinstance(f, Frames) for f in axis):
        return 6.0
    kinds = [_worth_of(f.origin) if isinstance(f, Atom) else _worth_of_row(f) for f in axis]
    return sum(kinds) / max(1, len(kinds))


def _worth_of(origin: Origin) -> float:
    return _WHOLE if origin.whole else _WORTH.get(origin.kind, 2)


def _worth_of_row(row: Factor) -> float:
    """Pieces say more than one name, but a table put together of pieces says nothing of images."""
    return 3.5 if all(map(_of_tables, pieces(row))) else 5


def _of_tables(axis: Axis) -> bool:
    return all(
        f.origin.kind in ("literal", "constant", "unknown")
        if isinstance(f, Atom)
        else isinstance(f, Concat) and all(map(_of_tables, f.parts))
        for f in axis
    )
