"""Patches of an image as rows of a matrix."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, pad


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv2d`` whose stride is its kernel, by one matrix product.

    Args:
        x: ``[B, C, H, W]``, whose sides are multiples of the kernel's.
        weight: ``[D, C, p, q]``; bias ``[D]``.

    Returns:
        ``[B, D, H / p, W / q]``, in memory as ``[B, H / p, W / q, D]``.
    """
    (batch, channels, height, width), (wide, _, p, q) = x.shape, weight.shape
    down, across = height // p, width // q
    cut = x.reshape(batch, channels, down, p, across, q).permute(0, 2, 4, 1, 3, 5)
    rows, columns = cut.reshape(batch, down * across, channels * p * q), weight.flatten(1)
    # Tensor cores load eight at a time.
    rest = -columns.shape[1] % 8
    if rest:
        rows, columns = pad(rows, (0, rest)), pad(columns, (0, rest))
    return linear(rows, columns, bias).transpose(1, 2).reshape(batch, wide, down, across)
