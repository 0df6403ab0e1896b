"""Gradients of merging, in plain PyTorch, so that they have gradients themselves.

Each token has one slot, so its gradient is one row of the result's, by its weight in the group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def save_merge(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what :func:`merge_backward` reads."""
    x, keep, src, dst, size, front, back = inputs
    ctx.save_for_backward(keep, src, dst, size, output[1])
    ctx.dtype, ctx.length, ctx.front, ctx.back = x.dtype, x.shape[1], front, back


def merge_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of ``x`` from that of the merged rows."""
    slots, weight = _slots(ctx, *ctx.saved_tensors)
    return _spread(grad, slots, weight, ctx.dtype), *[None] * 6


def save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what :func:`merge_norm_backward` reads."""
    x, keep, src, dst, size, weight, bias, eps, front, back, wide, branch = inputs
    merged, _, new_size, _level = output
    ctx.save_for_backward(keep, src, dst, size, new_size, merged, weight, bias)
    ctx.dtype, ctx.length, ctx.front, ctx.back = x.dtype, x.shape[1], front, back
    ctx.eps, ctx.wide, ctx.branch = eps, wide, branch is not None


def merge_norm_backward(
    ctx: Any, grad: Tensor, grad_normed: Tensor, _size: Tensor, _level: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x``, its branch, ``weight`` and ``bias`` from those of the rows and norm."""
    *maps, merged, weight, bias = ctx.saved_tensors
    dtype = torch.float32 if ctx.wide else merged.dtype
    row, shape = merged.to(dtype), [merged.shape[2]]
    scale, shift = (None if t is None else t.to(dtype) for t in (weight, bias))
    _, mean, rstd = torch.native_layer_norm(row, shape, scale, shift, ctx.eps)
    wanted = [True, weight is not None, bias is not None]
    through, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
        grad_normed, row, shape, mean, rstd, scale, shift, wanted
    )
    slots, share = _slots(ctx, *maps)
    of_x = _spread(grad + through.to(grad.dtype), slots, share, ctx.dtype)
    of_weight = None if weight is None else of_weight.to(weight.dtype)
    of_bias = None if bias is None else of_bias.to(bias.dtype)
    of_branch = of_x if ctx.branch else None
    return of_x, *[None] * 4, of_weight, of_bias, *[None] * 4, of_branch


def _slots(
    ctx: Any, keep: Tensor, src: Tensor, dst: Tensor, size: Tensor | None, new_size: Tensor
) -> tuple[Tensor, Tensor]:
    """For each row of ``x`` its slot in the result, and its weight there: both ``[B, N]``."""
    batch, left = keep.shape
    length, front, back = ctx.length, ctx.front, ctx.back
    ends = keep.new_ones((batch, 1))
    stays = torch.arange(front + left + back, device=keep.device).expand(batch, -1)
    moved = torch.arange(length, device=keep.device).expand(batch, -1)
    rows = [moved[:, :front], keep + front, moved[:, length - back :], src + front]
    places = torch.cat([stays, dst + front], dim=1)
    slots = torch.zeros_like(places).scatter(1, torch.cat(rows, dim=1), places)
    inner = slots[:, front : length - back] - front
    share = new_size.reciprocal().gather(1, inner)
    share = share if size is None else share * size
    ones = ends.to(share.dtype)
    return slots, torch.cat([ones.expand(-1, front), share, ones.expand(-1, back)], dim=1)


def _spread(grad: Tensor, slots: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    rows = grad.gather(1, slots[..., None].expand(-1, -1, grad.shape[2]))
    return (rows * weight[..., None]).to(dtype)
