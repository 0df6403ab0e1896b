"""Group sizes, and what weighs by them."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_fx.ops.placing import added, apart
from tome_fx.ops.plan import MergePlan
from tome_fx.ops.rows import cast, ones, wide


def merged_size(plan: MergePlan, size: Tensor | None, like: Tensor, onehot: bool = False) -> Tensor:
    """Group sizes after a merge, ``[B, n - r]``; ``size`` None means that all were 1.

    In float32, or in the dtype of ``like`` where that is wider: sizes above 256 are not whole
    numbers in bfloat16.
    """
    if size is None:
        one = torch.ones(1, dtype=wide(like.dtype), device=like.device)
        kept, joined = one.expand(plan.keep.shape), one.expand(plan.src.shape)
    else:
        kept, joined = size.gather(1, plan.keep), size.gather(1, plan.src)
    return apart(added(kept, plan.dst, joined, onehot))  # sizes are joined, by `along`


def along(
    parts: list[Tensor | int], rank: int, batch: int, dim: int, outer: int = 1, inner: int = 1
) -> Tensor:
    """Group sizes shaped to broadcast against a value of ``rank`` axes.

    Args:
        parts: the pieces of the token axis: sizes ``[B, n]``, or a number of tokens of size 1.
        batch: axis of the batch, between ``outer`` and ``inner`` positions (heads) of an image.
        dim: axis of the tokens.
    """
    like = next(part for part in parts if isinstance(part, Tensor))
    row = torch.cat([p if isinstance(p, Tensor) else ones(like, p) for p in parts], dim=1)
    if outer * inner > 1:
        row = row[None, :, None].expand(outer, -1, inner, -1).reshape(-1, row.shape[1])
    if batch > dim:
        row = row.transpose(0, 1)
    for axis in range(rank):
        if axis not in (batch, dim):
            row = row.unsqueeze(axis)
    return row


def add_log_size(logits: Tensor, size: Tensor) -> Tensor:
    """``logits + log size``, proportional attention (equation 1), in the dtype of ``logits``."""
    return logits + cast(size.log(), logits.dtype)


def key_bias(query: Tensor, size: Tensor, mask: Tensor | None = None) -> Tensor:
    """An additive attention mask in the dtype of ``query``: ``log size``, and the given mask."""
    bias = cast(size.log(), query.dtype)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.full_like(bias, float("-inf")))
    return mask + bias


def hide_members(
    logits: Tensor,
    counted: Tensor,
    size: Tensor,
    value: float | Tensor,
    hides: bool,
    weighted: bool = True,
) -> Tensor:
    """Logits of groups of which a query sees some members: ``logits + log(seen / size)``.

    A softmax with ``log size`` then gives each group a share for each member that is seen.

    Args:
        counted: how many members of each group a mask is true for, whole numbers that broadcast
            against ``logits``; they are hidden if ``hides``, else seen.
        size: group sizes along the keys, which broadcast likewise.
        value: the logits of groups of which nothing is seen.
        weighted: False without proportional attention: a group is seen or not.
    """
    seen = size - counted if hides else counted.to(size.dtype)
    if weighted:
        logits = logits + (seen / size).clamp_min(1e-12).log().to(logits.dtype)
    return torch.where(seen > 0, logits, value)


def seen_bias(query: Tensor, seen: Tensor, weighted: bool = True) -> Tensor:
    """An additive attention mask in the dtype of ``query``: the log of how many members are seen.

    Args:
        seen: whole numbers, of which 0 hides a group.
        weighted: False without proportional attention: a group is seen or not.
    """
    count = seen.to(wide(query.dtype))
    return (count if weighted else count.clamp_max(1.0)).log().to(query.dtype)


def scale_by_size(x: Tensor, size: Tensor) -> Tensor:
    """Member values to group totals."""
    return cast(x * size, x.dtype)


def divide_by_size(x: Tensor, size: Tensor) -> Tensor:
    """Group totals to member values."""
    return cast(x / size, x.dtype)


def weighted_sum(
    x: Tensor,
    size: Tensor | None,
    dims: list[int],
    keepdim: bool,
    divisor: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum(size * x) / divisor``: a sum or a mean over the tokens of the original.

    The weights are divided first, so that a mean stays in the range of ``x``.
    """
    whole = torch.int64 if not x.dtype.is_floating_point and not x.is_complex() else x.dtype
    result = whole if dtype is None else dtype
    accumulate = wide(torch.promote_types(x.dtype, result))
    weight = 1.0 / divisor if size is None else cast(size / divisor, accumulate)
    return _to((cast(x, accumulate) * weight).sum(dims, keepdim=keepdim), result)


def weighted_variance(
    x: Tensor,
    size: Tensor | None,
    dims: list[int],
    keepdim: bool,
    number: int,
    correction: float,
    root: bool,
) -> tuple[Tensor, Tensor]:
    """The variance and the mean over the tokens of the original, ``number`` of them.

    Args:
        size: group sizes, which broadcast against ``x``; None if all are 1.
        correction: what ``number`` is lessened by where squares are divided by it.
        root: the standard deviation in place of the variance.
    """
    mean = weighted_sum(x, size, dims, True, number, wide(x.dtype))
    squares = (x.to(mean.dtype) - mean).square()
    spread = weighted_sum(squares, size, dims, keepdim, 1) / max(number - correction, 0.0)
    spread = (spread.sqrt() if root else spread).to(x.dtype)
    return spread, (mean if keepdim else mean.squeeze(dims)).to(x.dtype)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return cast(x, dtype) if dtype.is_floating_point or dtype.is_complex else x.round().to(dtype)
