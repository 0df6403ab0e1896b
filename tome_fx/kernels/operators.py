"""The kernels as ops of PyTorch: ``tome_fx::match``, ``::merge``, ``::merge_norm``, ``::attend``.

Importing this module registers them. Fake tensors, ``torch.compile`` and autograd see through them;
``torch.func`` and forward-mode gradients do not, and :mod:`tome_fx.kernels.choice` never sends them
here. Gradients are plain PyTorch; ``attend`` has none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from tome_fx.kernels.attention import attend_kernel
from tome_fx.kernels.blocks import (
    attend_blocks,
    match_blocks,
    merge_blocks,
    plan_blocks,
    unit_blocks,
)
from tome_fx.kernels.gradients import merge_backward, merge_norm_backward, save_merge, save_norm
from tome_fx.kernels.matching import pairs_kernel, plan_kernel, unit_kernel
from tome_fx.kernels.merging import merge_kernel, merge_norm_kernel


@triton_op("tome_fx::match", mutates_args=())
def match(
    keys: Tensor, r: int, parity: int, front: int, back: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching (section 3.2) of a stream by its keys.

    Args:
        keys: ``[B, H, N, C]`` in float16, bfloat16 or float32, any strides.
        r: how many tokens to remove, at most those of A.
        parity: of the first stream token in the whole sequence: 0 if it is in A.
        front: protected tokens before the stream; ``back``: behind it.

    Returns:
        ``keep [B, n - r]``, ``src [B, r]``, ``dst [B, r]``, int64, as ``ops.match`` makes them.
    """
    batch, heads, length, width = keys.shape
    count = length - front - back
    left, right = (count + 1 - parity) // 2, (count + parity) // 2
    high = keys.new_empty((batch, count, width), dtype=torch.float16)
    low = torch.empty_like(high)
    blocks = unit_blocks(width)
    wrap_triton(unit_kernel)[(batch, -(-count // blocks["ROWS"]))](
        keys, high, low, *keys.stride(), front, count, heads, width, **blocks
    )
    keep = keys.new_empty((batch, count - r), dtype=torch.int64)
    src, dst = (keys.new_empty((batch, r), dtype=torch.int64) for _ in range(2))
    blocks = match_blocks(left, width)
    best, partner = high, high  # not there; a compiler would copy what is read and written
    if not blocks["RANKS"]:
        best = keys.new_empty((batch, left), dtype=torch.float32)
        partner = torch.empty_like(best, dtype=torch.int32)
    wrap_triton(pairs_kernel)[(batch, -(-left // blocks["ROWS"]))](
        high, low, best, partner, keep, src, dst, count, left, right, parity, r, width, **blocks
    )
    if not blocks["RANKS"]:
        wrap_triton(plan_kernel)[(batch,)](
            best, partner, keep, src, dst, left, right, parity, r, **plan_blocks(left)
        )
    return keep, src, dst


@triton_op("tome_fx::merge", mutates_args=())
def merge(
    x: Tensor, keep: Tensor, src: Tensor, dst: Tensor, size: Tensor | None, front: int, back: int
) -> tuple[Tensor, Tensor]:
    """Replace each group by its size-weighted mean (section 3.1).

    Args:
        x: ``[B, front + n + back, C]`` in float16, bfloat16 or float32, any strides.
        keep: ``[B, n - r]``, ``src`` and ``dst`` ``[B, r]``, int64: a plan.
        size: ``[B, n]`` float32, or None for all ones.

    Returns:
        ``[B, front + n - r + back, C]`` in the dtype of ``x``, and the new sizes ``[B, n - r]``.
    """
    # What is absent is stood for by an input: a compiler would copy what is read and written.
    merged, new_size = _outputs(x, keep, front, back)
    keep, src, dst, size = _rows(keep), _rows(src), _rows(dst), _optional_rows(size)
    r, width = src.shape[1], x.shape[2]
    wrap_triton(merge_kernel)[(x.shape[0], merged.shape[1])](
        x, keep, src, dst, keep if size is None else size, merged, new_size, *x.stride(),
        front, x.shape[1] - front - back, merged.shape[1], r, width,
        SIZED=size is not None, **merge_blocks(width, r),
    )  # fmt: skip
    return merged, new_size


@triton_op("tome_fx::merge_norm", mutates_args=())
def merge_norm(
    x: Tensor, keep: Tensor, src: Tensor, dst: Tensor, size: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, eps: float, front: int, back: int, wide: bool,
    branch: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`merge`, and the LayerNorm over the channels of its result.

    Args:
        weight: ``[C]``, or None; ``bias`` likewise.
        wide: the norm is in float32 whatever ``x`` is, as autocast has it.
        branch: what a residual connection adds to ``x`` first, of its shape and dtype, or None.

    Returns:
        The merged rows, their norm, the new sizes, and ``log2 size`` of all rows in float32
        ``[B, front + n - r + back]``, which :func:`attend` wants.
    """
    merged, new_size = _outputs(x, keep, front, back)
    normed = torch.empty_like(merged, dtype=torch.float32 if wide else x.dtype)
    level = new_size.new_empty(merged.shape[:2])
    keep, src, dst, size = _rows(keep), _rows(src), _rows(dst), _optional_rows(size)
    r, width = src.shape[1], x.shape[2]
    other = x if branch is None else branch
    wrap_triton(merge_norm_kernel)[(x.shape[0], merged.shape[1])](
        x, other, keep, src, dst, keep if size is None else size, merged, normed, new_size, level,
        x if weight is None else weight.contiguous(), x if bias is None else bias.contiguous(),
        *x.stride(), *other.stride(),
        front, x.shape[1] - front - back, merged.shape[1], r, width, eps,
        BRANCH=branch is not None, SIZED=size is not None, WEIGHT=weight is not None,
        BIAS=bias is not None, **merge_blocks(width, r),
    )  # fmt: skip
    return merged, normed, new_size, level


@triton_op("tome_fx::attend", mutates_args=())
def attend(query: Tensor, key: Tensor, value: Tensor, level: Tensor, scale: float) -> Tensor:
    """``softmax(scale query key^T + log size) value`` (equation 1), without gradients.

    Args:
        query: ``[B, H, N, d]`` in float16 or bfloat16, any strides.
        key: ``[B, K, S, d]``, where ``K`` divides ``H``; ``value [B, K, S, e]``.
        level: ``log2 size`` of the keys, ``[B or 1, S]`` float32.

    Returns:
        ``[B, H, N, e]``, in memory as ``[B, N, H, e]``, which is what comes next wants.
    """
    batch, heads, queries, width = query.shape
    key_heads, keys, value_width = value.shape[1:]
    held = query.new_empty((batch, queries, heads, value_width))
    bias = level.contiguous()
    blocks = attend_blocks(keys, width, value_width)
    wrap_triton(attend_kernel)[(batch * heads * -(-queries // blocks["ROWS"]),)](
        query, key, value, bias, held, *query.stride(), *key.stride(), *value.stride(),
        0 if bias.shape[0] == 1 else keys, held.stride(0), held.stride(2), held.stride(1),
        queries, keys, heads, heads // key_heads, width, value_width, scale / math.log(2),
        **blocks,
    )  # fmt: skip
    return held.transpose(1, 2)


def _outputs(x: Tensor, keep: Tensor, front: int, back: int) -> tuple[Tensor, Tensor]:
    rows = front + keep.shape[1] + back
    merged = x.new_empty((x.shape[0], rows, x.shape[2]))
    return merged, keep.new_empty(keep.shape, dtype=torch.float32)


def _rows(index: Tensor) -> Tensor:
    return index.contiguous()


def _optional_rows(size: Tensor | None) -> Tensor | None:
    return None if size is None else size.contiguous()


merge.register_autograd(merge_backward, setup_context=save_merge)
merge_norm.register_autograd(merge_norm_backward, setup_context=save_norm)
