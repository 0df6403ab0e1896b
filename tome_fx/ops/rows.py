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

    def range_of(start: int, stop: int) -> Tensor:
        places = torch.arange(start, stop, device=index.device)
        return places.expand(index.shape[0], stop - start)

    first = range_of(0, front) if front else None
    last = range_of(total - back, total) if back else None
    return between(first, shifted(index, front), last)


def between(first: Tensor | None, rows: Tensor, last: Tensor | None) -> Tensor:
    """``[B, front + n + back]``. Some runtimes know no piece of no size, so none is joined."""
    pieces = [piece for piece in (first, rows, last) if piece is not None]
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else rows


def shifted(index: Tensor, front: int) -> Tensor:
    """Positions behind ``front`` others."""
    return index + front if front else index


def rows_of(tokens: Tensor, index: Tensor) -> Tensor:
    """``tokens[b, index[b]]`` for ``[B, N, ...]`` and ``[B, m]``."""
    return tokens.gather(1, tail(index, tokens).expand(*index.shape, *tokens.shape[2:]))


def moved(x: Tensor, start: int, end: int) -> Tensor:
    """``movedim``, and nothing where an axis is in its place."""
    return x if start == end else x.movedim(start, end)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a dtype, and itself where it has that."""
    return x if x.dtype == dtype else x.to(dtype)


def ones(like: Tensor, count: int) -> Tensor:
    """``[B, count]`` for ``like`` of ``[B, ...]``."""
    return torch.ones(like.shape[0], count, dtype=like.dtype, device=like.device)


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
