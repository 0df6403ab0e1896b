"""Reshape on types: the ordered factors of a value, dealt out again to other axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Concat,
    Factor,
    Origin,
    TensorType,
    extent,
    factor_count,
    has_stream,
)
from tome_fx.graph.grids import fused, spread


def regroup(axes: Sequence[Axis], shape: Sequence[int], node: str) -> tuple[Axis, ...] | None:
    """The axes of ``reshape(x, shape)`` for an ``x`` with ``axes``, or None.

    Factors keep their order. A plain factor splits where the shape asks for it, and its pieces
    keep the kind of their origin; a row of tokens is dealt out to whole axes, a grid, and does
    not split otherwise, nor does the batch: then there is no type. Extents are those of the
    captured program, the batch's stand-in included; ``node`` names the reshape in the origin of the
    pieces.
    """
    if any(size == 0 for size in shape) or any(extent(axis) == 0 for axis in axes):
        return None
    flat = fused(TensorType(tuple(axes))).axes
    queue: list[Factor] = [f for axis in flat for f in axis if f.extent != 1 or _kept(f)]
    result: list[Axis] = []
    while len(result) < len(shape):
        dealt = _dealt(queue, shape[len(result) :], node, len(result))
        if dealt is None:
            return None
        result.extend(dealt)
    # A stream of one token has extent 1 and is not asked for by any size: it has no place.
    return None if any(not _is_one_image(factor) for factor in queue) else tuple(result)


def _dealt(queue: list[Factor], sizes: Sequence[int], node: str, place: int) -> list[Axis] | None:
    """The next axis, of factors taken off the queue, or all axes of a grid; None if none fit."""
    size = sizes[0]
    if size == 1 and queue and _is_one_image(queue[0]):
        return [(queue.pop(0),)]
    taken: list[Factor] = []
    while size > 1:
        if not queue:
            return None
        factor = queue.pop(0)
        whole = factor.extent
        if _is_one_image(factor):
            continue
        if size % whole == 0:
            taken.append(factor)
            size //= whole
            continue
        if has_stream((factor,)) and all(isinstance(images, Batch) for images in taken):
            grid = spread(factor, [size, *sizes[1:]])
            return [(*taken, *grid[0]), *grid[1:]] if grid else None
        split = _split(factor, size, node, place)
        if split is None:
            return None
        taken.append(split[0])
        queue.insert(0, split[1])
        size = 1
    return [tuple(taken)]


def _kept(factor: Factor) -> bool:
    return isinstance(factor, Batch) or has_stream((factor,))


def _is_one_image(factor: Factor) -> bool:
    """Is this the batch of a program for one image? It has an axis of 1, or none at all."""
    return isinstance(factor, Batch) and factor.extent == 1


def _split(factor: Factor, size: int, node: str, place: int) -> tuple[Factor, Factor] | None:
    whole = factor.extent
    if isinstance(factor, Batch) or has_stream((factor,)) or whole % size:
        return None
    kind = factor_kind(factor)
    outer = Atom(size, Origin(kind, node, (place, 0)))
    inner = Atom(whole // size, Origin(kind, node, (place, 1)))
    return outer, inner


def reshape_sizes(factors: Iterable[Factor]) -> list[int]:
    """An axis for each factor in the rewritten program, -1 for the images."""
    return [-1 if isinstance(factor, Batch) else factor_count(factor) for factor in factors]


def factor_kind(factor: Factor) -> str:
    """The kind of a factor's origin; of a concatenation, the kind that all its pieces share."""
    if isinstance(factor, Atom):
        return factor.origin.kind
    if isinstance(factor, Concat):
        kinds = {factor_kind(piece) for part in factor.parts for piece in part}
        return kinds.pop() if len(kinds) == 1 else "unknown"
    return "unknown"


def axis_kind(axis: Axis) -> str:
    """The kind that a new axis has in place of ``axis``: places, with or without a class token."""
    kinds = _kinds(axis)
    if kinds & {"conv", "input"} and "channel" not in kinds:
        return "conv"
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _kinds(axis: Axis) -> set[str]:
    found: set[str] = set()
    for factor in axis:
        if isinstance(factor, Concat):
            found.update(*map(_kinds, factor.parts))
        else:
            found.add("conv" if has_stream((factor,)) else factor_kind(factor))
    return found
