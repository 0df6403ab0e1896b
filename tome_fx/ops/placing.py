"""Values put in the places that an index says: by scatter, or by one-hot products without any.

Some runtimes lack scatter, or have it wrong. ``onehot`` compares places instead and sums a product,
with the same result up to the order of the additions, and at a cost. A NaN among wide rows (the
features of a token) then reaches all tokens of its image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tome_fx.ops.rows import product, scalar, tail

_NARROW = 32


def permuted(place: Tensor, values: Tensor, onehot: bool = False) -> Tensor:
    """``result[b, place[b, i]] = values[b, i]`` for permutations ``[B, n]`` of ``0 .. n - 1``."""
    if not onehot:
        return apart(torch.zeros_like(values).scatter(1, place, values))
    return (_hits(place, place.shape[1]) * values[:, None]).sum(-1)


def added(base: Tensor, place: Tensor, rows: Tensor, onehot: bool = False) -> Tensor:
    """``base`` with ``rows[b, i]`` added at ``place[b, i]``.

    Args:
        base: ``[B, n, ...]``.
        place: ``[B, r]``, a place may occur several times.
        rows: ``[B, r, ...]`` of the dtype of ``base``.
    """
    if not onehot:
        return base.scatter_add(1, tail(place, rows).expand(rows.shape), rows)
    width = math.prod(rows.shape[2:])
    hits, flat = _hits(place, base.shape[1]), rows.reshape(*rows.shape[:2], width)
    if width <= _NARROW:
        # A mask holds infinities, which a product with 0 would make NaN everywhere.
        sums = torch.where(hits[..., None] > 0, flat[:, None], scalar(0.0, flat)).sum(2)
    else:
        sums = product(hits.to(rows.dtype), flat)
    return base + sums.reshape(base.shape)


def apart(x: Tensor) -> Tensor:
    """``x`` to its bits, for a row that is joined of pieces.

    Inductor lets the pieces of a ``cat`` be views of it. Of one that it wrote to in place, as of
    what was ``added``, it forgets that: once the row was read for the last time, its memory is
    taken, and whoever reads the piece later reads something else. What an op makes of a piece is
    safe, and that two signs are none is nothing that Inductor knows.
    """
    return x if x.dtype is torch.bool else x.neg().neg()


def _hits(place: Tensor, count: int) -> Tensor:
    """``[B, count, n]`` int64: 1 where the place of entry ``n`` is the row."""
    slots = torch.arange(count, device=place.device)
    return (place[:, None] == slots[:, None]).long()
