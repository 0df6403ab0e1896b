"""Rows of a token axis by index: what merging and unmerging are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def whole(index: Tensor, front: int, back: int, total: int) -> Tensor:
    """Positions of a stream as positions of the whole axis, the protected ones included."""
    if front == 0 and back == 0:
        return index
    batch = index.shape[0]
    first = torch.arange(front, device=index.device).expand(batch, front)
    last = torch.arange(total - back, total, device=index.device).expand(batch, back)
    return torch.cat([first, index + front, last], dim=1)


def rows_of(tokens: Tensor, index: Tensor) -> Tensor:
    """``tokens[b, index[b]]`` for ``[B, N, ...]`` and ``[B, m]``."""
    return tokens.gather(1, tail(index, tokens).expand(*index.shape, *tokens.shape[2:]))


def tail(index: Tensor, x: Tensor) -> Tensor:
    """``[B, m]`` with the trailing axes of ``x`` as ones."""
    return index.reshape(*index.shape, *(1 for _ in range(x.dim() - 2)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float32, or ``dtype`` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, under autocast too in no fewer bits than they have."""
    kind = left.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return left @ right
    with torch.autocast(kind, enabled=False):
        return left @ right


def size_of(x: Tensor, dim: int) -> int:
    """The size of one axis of ``x``."""
    return x.shape[dim]
