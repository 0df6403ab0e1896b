"""Merge and unmerge: values from one level to another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tome_fx import kernels
from tome_fx.ops.placing import added
from tome_fx.ops.plan import MergePlan
from tome_fx.ops.rows import between, cast, moved, ones, rows_of, shifted, tail, whole, wide


def merge(
    x: Tensor,
    plan: MergePlan,
    size: Tensor | None,
    new_size: Tensor,
    dim: int = 1,
    front: int = 0,
    back: int = 0,
    onehot: bool = False,
) -> Tensor:
    """Replace each group by its size-weighted mean (section 3.1).

    Args:
        x: ``[B, ..., N, ...]`` with the tokens on ``dim``. An index or a mask (not floating) has
            no mean: it takes the row of the group's representative.
        plan: of the stream on that axis.
        size: ``[B, n]`` group sizes before, or None for all ones.
        new_size: ``[B, n - r]`` group sizes after; a kernel sums them itself.
        onehot: without scatter, see ``ops.placing``.

    Returns:
        ``[B, ..., N - r, ...]`` in the dtype of ``x``.
    """
    if not x.is_floating_point():
        return take(x, plan.keep, dim, front, back)
    if not onehot and kernels.can_merge(x, size, dim):
        merged: Tensor = torch.ops.tome_fx.merge(x, *plan, size, front, back)[0]
        return merged
    inverse = new_size.reciprocal()
    joined = inverse.gather(1, plan.dst)
    if size is not None:
        joined = joined * size.gather(1, plan.src)
    kept = inverse if size is None else inverse * size.gather(1, plan.keep)
    # Weights of at most 1 before the sum: x * size could leave the range of fp16.
    return _combine(x, plan, (kept, joined), dim, front, back, onehot)


def merge_sum(
    x: Tensor,
    plan: MergePlan,
    dim: int = 1,
    front: int = 0,
    back: int = 0,
    onehot: bool = False,
) -> Tensor:
    """Replace each group by its sum: the merge of a value that holds group totals."""
    return _combine(x, plan, None, dim, front, back, onehot)


def _combine(
    x: Tensor,
    plan: MergePlan,
    weights: tuple[Tensor, Tensor] | None,
    dim: int,
    front: int,
    back: int,
    onehot: bool,
) -> Tensor:
    tokens = moved(x, dim, 1)
    slots = whole(plan.keep, front, back, tokens.shape[1])
    base = rows_of(tokens, slots)
    rows = rows_of(tokens, shifted(plan.src, front))
    dtype = wide(x.dtype)
    base, rows = cast(base, dtype), cast(rows, dtype)
    if weights is not None:
        kept, joined = weights
        base = base * tail(_with_ones(kept, front, back), base)
        rows = rows * tail(joined, rows)
    found = added(base, shifted(plan.dst, front), rows, onehot)
    return moved(cast(found, x.dtype), 1, dim)


def _with_ones(weights: Tensor, front: int, back: int) -> Tensor:
    """``[B, front + n + back]``: 1 for each protected token."""
    first = ones(weights, front) if front else None
    return between(first, weights, ones(weights, back) if back else None)


def unmerge(x: Tensor, assignment: Tensor, dim: int = 1, front: int = 0, back: int = 0) -> Tensor:
    """Give each token of the stream its group's value, in the original order.

    Args:
        x: ``[B, ..., front + n' + back, ...]``.
        assignment: ``[B, n]`` the slot of each token.

    Returns:
        ``[B, ..., front + n + back, ...]``.
    """
    return take(x, assignment, dim, front, back)


def take(x: Tensor, index: Tensor, dim: int = 1, front: int = 0, back: int = 0) -> Tensor:
    """Rows of the stream by index, the protected tokens left as they are.

    Args:
        x: ``[B, ..., N, ...]`` with the tokens on ``dim``.
        index: ``[B, m]`` positions in the stream.

    Returns:
        ``[B, ..., front + m + back, ...]``.
    """
    tokens = moved(x, dim, 1)
    return moved(rows_of(tokens, whole(index, front, back, tokens.shape[1])), 1, dim)


def total(
    x: Tensor,
    slots: Tensor,
    count: int,
    dim: int = 1,
    front: int = 0,
    back: int = 0,
    onehot: bool = False,
) -> Tensor:
    """The sum of each group's rows of a table; of whole numbers and masks, how many there are.

    Args:
        x: ``[B, ..., front + n + back, ...]``, a row for each token before any merge.
        slots: ``[B, n]`` the group of each token, of ``count``.

    Returns:
        ``[B, ..., front + count + back, ...]``.
    """
    kind = x.dtype if x.is_floating_point() or x.is_complex() else torch.int64
    sums = wide(kind) if x.is_floating_point() else kind
    rows = cast(moved(x, dim, 1), sums)
    left = front + count + back
    base = rows.new_zeros(rows.shape[0], left, *rows.shape[2:])
    places = whole(slots, front, back, left)
    return moved(cast(added(base, places, rows, onehot), kind), 1, dim)


def for_images(x: Tensor, like: Tensor) -> Tensor:
    """A table for each image: ``[...] -> [B, ...]``; ``like``: any ``[B, ...]``."""
    return x.expand(like.shape[0], *x.shape)


def take_constant(x: Tensor, index: Tensor, dim: int, front: int = 0, back: int = 0) -> Tensor:
    """:func:`take` from a value without a batch axis: ``[..., N, ...] -> [B, ..., N', ...]``."""
    tokens = x.movedim(dim, 0)
    rows = tokens[whole(index, front, back, tokens.shape[0])]
    return rows.movedim(1, dim + 1)


def place_batch(
    x: Tensor, rank: int, batch: int, heads: list[int] | None = None, outer: int = 1
) -> Tensor:
    """``[B, own axes]`` to ``rank`` axes that broadcast, aligned at the last, with B on ``batch``.

    Axes that the value lacks become 1; its own axis at ``batch``, if it has one, is 1 and goes.
    ``heads`` are inner positions of the batch axis that share an image, ``outer`` counts those
    outside of the images.
    """
    own = x.dim() - 1
    place = batch - (rank - own)
    if place >= 0:
        x = x.squeeze(place + 1)
    for _ in range(rank - x.dim()):
        x = x.unsqueeze(1)
    if heads or outer > 1:
        inner = math.prod(heads or ())
        x = x[None, :, None].expand(outer, -1, inner, *x.shape[1:]).flatten(0, 2)
    return x.movedim(0, batch)
