"""Tokens that stand on a grid: ``[b, h, w, c]``, one axis for the rows and one for the columns.

The value of each op between two reshapes may have them so. Unmerged, they are what the captured
program has; merged, the first axis holds all tokens and the others one: ``[b, n, 1, c]``. So a
value keeps its rank, and what acts on each token alone runs unchanged. Axes of one may stand
between, as in a window that is the whole grid, ``[b, 1, h, 1, w, c]``: they move no token. The
first axis may hold the images too, as where windows stand in the batch,
``[b * windows, window, c]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tome_fx.graph.axes import (
    Axis,
    Batch,
    Concat,
    Factor,
    GridAxis,
    Stream,
    TensorType,
    extent,
)


def grid_axis(axis: Axis) -> GridAxis | None:
    """The axis of a grid that ``axis`` is, if it is nothing else; images may stand before it."""
    found = axis[-1] if axis else None
    if not isinstance(found, GridAxis) or (found.place and len(axis) > 1):
        return None
    return found if all(isinstance(factor, Batch) for factor in axis[:-1]) else None


def has_grid(type_: TensorType) -> bool:
    """Do tokens stand on a grid in this value?"""
    return any(grid_axis(axis) for axis in type_.axes)


def fused(type_: TensorType) -> TensorType:
    """``type_`` with all tokens of a grid on the first of its axes, of the same rank."""

    def flat(axis: Axis) -> Axis:
        found = grid_axis(axis)
        if found is None:
            return axis
        return () if found.place else (*axis[:-1], found.row)

    return TensorType(tuple(map(flat, type_.axes)))


def is_whole(type_: TensorType) -> bool:
    """Is every grid here with all of its axes, side by side but for ones, and in order?"""
    expected: GridAxis | None = None
    for axis in type_.axes:
        if not axis:
            continue
        found = grid_axis(axis)
        if found != expected and (expected or (found and found.place)):
            return False
        if found is None and _hides_grid(axis):
            return False
        last = found is None or found.place + 1 == len(found.extents)
        expected = None if last or found is None else replace(found, place=found.place + 1)
    return expected is None


def _hides_grid(axis: Axis) -> bool:
    """Is an axis of a grid a factor or a piece of ``axis``?"""
    return any(
        isinstance(factor, GridAxis)
        or (isinstance(factor, Concat) and any(map(_hides_grid, factor.parts)))
        for factor in axis
    )


def spread(row: Factor, sizes: Sequence[int]) -> list[Axis]:
    """The axes that a row of tokens is dealt out to; none if the first ``sizes`` do not hold it."""
    taken: list[int] = []
    whole = 1
    for size in sizes:
        if whole == row.extent or size < 1:
            break
        taken.append(size)
        whole *= size
    grid = tuple(size for size in taken if size > 1)
    if whole != row.extent or len(grid) < 2 or not isinstance(row, (Stream, Concat)):
        return []
    places = iter(range(len(grid)))
    return [(GridAxis(row, grid, next(places)),) if size > 1 else () for size in taken]


def named_grid(axes: Sequence[Axis], atoms: Axis, name: Factor) -> tuple[Axis, ...]:
    """``axes`` with neighbours that are together ``atoms`` called a grid of ``name``.

    Neighbours are side by side but for ones.
    """
    row = list(axes)
    for start in range(len(row)):
        images, first = _images(row[start])
        for stop in range(start + 2, len(row) + 1):
            run = [first, *row[start + 1 : stop]]
            if run[0] and run[-1] and sum(run, ()) == atoms:
                grid = spread(name, [extent(axis) for axis in run]) or run
                row[start:stop] = [(*images, *grid[0]), *grid[1:]]
                return tuple(row)
    return tuple(row)


def _images(axis: Axis) -> tuple[Axis, Axis]:
    """The images that stand first on an axis, and what else it holds."""
    width = next((i for i, f in enumerate(axis) if not isinstance(f, Batch)), len(axis))
    return axis[:width], axis[width:]


def completed(axes: Sequence[Axis], target: TensorType) -> list[Axis]:
    """``axes`` with what broadcasts along a part of a grid brought to the whole grid.

    ``axes`` are aligned with the last axes of ``target``.
    """
    shift = target.rank - len(axes)
    touched = {found.row for found in map(grid_axis, axes) if found}
    row = list(axes)
    for place, axis in enumerate(axes):
        goal = grid_axis(target.axes[place + shift])
        if goal and extent(axis) == 1 and goal.row in touched:
            row[place] = target.axes[place + shift]
    return row
