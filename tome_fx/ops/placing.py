"""Values put in the places that an index says: by scatter, or by one-hot products without any.

Some runtimes lack scatter, or have it wrong. ``onehot`` compares places instead and sums a product,
with the same result up to the order of the additions, and at a cost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tome_fx.ops.rows import tail


def permuted(place: Tensor, values: Tensor, onehot: bool = False) -> Tensor:
    """``result[b, place[b, i]] = values[b, i]`` for permutations ``[B, n]`` of ``0 .. n - 1``."""
    if not onehot:
        return torch.zeros_like(values).scatter(1, place, values)
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
    hits = _hits(place, base.shape[1]).to(rows.dtype)
    sums = hits @ rows.reshape(*rows.shape[:2], math.prod(rows.shape[2:]))
    return base + sums.reshape(base.shape)


def _hits(place: Tensor, count: int) -> Tensor:
    """``[B, count, n]`` int64: 1 where the place of entry ``n`` is the row."""
    slots = torch.arange(count, device=place.device)
    return (place[:, None] == slots[:, None]).long()
