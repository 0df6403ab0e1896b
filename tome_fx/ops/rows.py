"""Rows of a token axis by index: what merging and unmerging are made of."""

from __future__ import annotations

import torch
from torch import Tensor

# Looked up: an export would hold each question to torch.
_WIDE = {
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


def whole(index: Tensor, front: int, back: int, total: int) -> Tensor:
    """Positions of a stream as positions of the whole axis, the protected ones included."""
    if front == 0 and back == 0:
        return index
    ends = [torch.arange(start, stop, device=index.device).expand(index.shape[0], stop - start)
            for start, stop in ((0, front), (total - back, total)) if stop > start]  # fmt: skip
    moved = index + front if front else index
    return torch.cat([ends[0], moved, *ends[1:]] if front else [moved, *ends], dim=1)


def rows_of(tokens: Tensor, index: Tensor) -> Tensor:
    """``tokens[b, index[b]]`` for ``[B, N, ...]`` and ``[B, m]``."""
    return tokens.gather(1, tail(index, tokens).expand(*index.shape, *tokens.shape[2:]))


def moved(x: Tensor, start: int, end: int) -> Tensor:
    """``movedim``, and nothing where an axis is in its place."""
    return x if start == end else x.movedim(start, end)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a dtype, and itself where it has that."""
    return x if x.dtype == dtype else x.to(dtype)


def scalar(value: float, like: Tensor) -> Tensor:
    """A number as a tensor without axes: not all runtimes choose between a tensor and a number."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def tail(index: Tensor, x: Tensor) -> Tensor:
    """``[B, m]`` with the trailing axes of ``x`` as ones."""
    return index.reshape(*index.shape, *(1 for _ in range(x.dim() - 2)))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float32, or ``dtype`` where that is wider."""
    return _WIDE.get(dtype, torch.float32)


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
