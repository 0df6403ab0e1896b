"""The kernels as ops of PyTorch: ``tome_fx::match``, ``tome_fx::merge``, ``tome_fx::merge_norm``.

Importing this module registers them. Fake tensors, ``torch.compile`` and autograd see through them;
``torch.func`` and forward-mode gradients do not, and :mod:`tome_fx.kernels.choice` never sends them
here. Gradients are plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from tome_fx.kernels.gradients import merge_backward, merge_norm_backward, save_merge, save_norm
from tome_fx.kernels.language import power_of_two
from tome_fx.kernels.matching import best_kernel, plan_kernel, unit_kernel
from tome_fx.kernels.merging import merge_kernel, merge_norm_kernel

# Elements that a program holds at a time, in a block that grows with the model.
_HELD = 4096


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
    unit = keys.new_empty((batch, count, width), dtype=torch.float32)
    channels = power_of_two(width, 16)
    rows = max(1, min(16, _HELD // channels))
    wrap_triton(unit_kernel)[(batch, -(-count // rows))](
        keys, unit, *keys.stride(), front, count, heads, width, ROWS=rows, WIDTH=channels
    )
    best = unit.new_empty((batch, left))
    partner = torch.empty_like(best, dtype=torch.int32)
    wrap_triton(best_kernel)[(batch, -(-left // 32))](
        unit, best, partner, count, left, right, parity, width,
        ROWS=32, COLUMNS=64, STEP=min(32, channels),
    )  # fmt: skip
    keep = best.new_empty((batch, count - r), dtype=torch.int64)
    src, dst = (best.new_empty((batch, r), dtype=torch.int64) for _ in range(2))
    lines = power_of_two(left, 16)
    wrap_triton(plan_kernel)[(batch,)](
        best, partner, keep, src, dst, left, right, parity, r,
        ROWS=lines, STEP=min(lines, max(2, _HELD // lines)),
    )  # fmt: skip
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
        SIZED=size is not None, MERGES=power_of_two(r), WIDTH=power_of_two(width),
    )  # fmt: skip
    return merged, new_size


@triton_op("tome_fx::merge_norm", mutates_args=())
def merge_norm(
    x: Tensor, keep: Tensor, src: Tensor, dst: Tensor, size: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, eps: float, front: int, back: int, wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """:func:`merge`, and the LayerNorm over the channels of its result.

    Args:
        weight: ``[C]``, or None; ``bias`` likewise.
        wide: the norm is in float32 whatever ``x`` is, as autocast has it.

    Returns:
        The merged rows, their norm, and the new sizes.
    """
    merged, new_size = _outputs(x, keep, front, back)
    normed = torch.empty_like(merged, dtype=torch.float32 if wide else x.dtype)
    keep, src, dst, size = _rows(keep), _rows(src), _rows(dst), _optional_rows(size)
    r, width = src.shape[1], x.shape[2]
    wrap_triton(merge_norm_kernel)[(x.shape[0], merged.shape[1])](
        x, keep, src, dst, keep if size is None else size, merged, normed, new_size,
        x if weight is None else weight.contiguous(), x if bias is None else bias.contiguous(),
        *x.stride(),
        front, x.shape[1] - front - back, merged.shape[1], r, width, eps,
        SIZED=size is not None, WEIGHT=weight is not None, BIAS=bias is not None,
        MERGES=power_of_two(r), WIDTH=power_of_two(width),
    )  # fmt: skip
    return merged, normed, new_size


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
