"""Kernels are used on a device after they were seen to agree with plain ops there.

A kernel is compiled for each kind of device by whatever Triton is installed. Before the first
transform on a device takes them, they match, merge and attend on a small batch, in each of the ways
that they cut their work.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tome_fx import kernels, ops
from tome_fx.errors import warn


def has_kernels(device: torch.device) -> bool:
    """Are there kernels for ``device``, and do they do what plain ops do?"""
    return kernels.chosen(device.type, device.index) and _agrees(device)


@cache
def _agrees(device: torch.device) -> bool:
    """Compare once; where they differ or fail, plain ops serve from then on, with a warning."""
    try:
        with torch.no_grad():
            found = _steps(device)
            with kernels.using("portable"):
                expected = _steps(device)
        same = all(_close(a, b) for a, b in zip(found, expected, strict=True))
        trouble = "" if same else "they gave other results than plain ops"
    except Exception as error:
        trouble = (str(error).splitlines() or [type(error).__name__])[0]
    if trouble:
        kernels.distrust(device.type, device.index)
        warn(
            f"The kernels of tome_fx are not used on {device}: {trouble}. Plain ops serve; "
            "TOME_FX_KERNELS=portable leaves the kernels out without this check.",
        )
    return not trouble


def _close(found: Tensor, expected: Tensor) -> bool:
    """Up to rounding; values are of the size of 1."""
    return torch.allclose(found, expected, atol=1e-2 if found.dtype == torch.float16 else 1e-5)


def _steps(device: torch.device) -> tuple[Tensor, ...]:
    """Match and merge twice, with the norm behind, as a rewritten graph does."""
    angle = torch.arange(64, device=device).reshape(2, 1, 32, 1) ** 2 % 61 / 9.0
    keys = torch.cat([angle.cos(), angle.sin(), angle.cos() / 2], -1).expand(2, 3, 32, 3)
    x = torch.arange(2 * 34 * 8, device=device).reshape(2, 34, 8).float().sin()
    first = ops.match_keys(keys, 9)
    merged, normed, size, level = ops.merge_norm(x, first, None, keys, [8], front=1, back=1)
    kept = ops.take(keys[:, 0], first.keep)[:, None]
    second = ops.match_keys(kept, 4, 1)
    again = ops.merge(merged, second, size, ops.merged_size(second, size, keys), 1, 1, 1)
    steps = (*first, merged, normed, size, level, *second, again)
    return *steps, *_plans(device), *_half_steps(device)


def _plans(device: torch.device) -> tuple[Tensor, ...]:
    """Matching of more tokens than one block has, and than one program ranks, of scores 0 and 1."""
    found: list[Tensor] = []
    for tokens, width in ((140, 64), (300, 80)):
        kind = torch.arange(2 * tokens, device=device).reshape(2, 1, tokens) ** 2 % 251 % 61
        kind[:, :, 1::2] -= kind[:, :, 1::2] % 2  # so that many have no like
        keys = torch.nn.functional.one_hot(kind, width).float()
        found += ops.match_keys(keys, 20)
    return tuple(found)


def _half_steps(device: torch.device) -> tuple[Tensor, ...]:
    """What kernels do in half precision: sum, merge and norm, and attention by blocks."""
    x = torch.arange(2 * 70 * 192, device=device).reshape(2, 70, 192).float().sin().half()
    plan = ops.match_keys(x[:, None, :, :3].round(), 9)
    merged = ops.merge_norm(x, plan, None, x, [192], branch=x.cos())
    size = torch.arange(1, 71, device=device).float().expand(2, 1, 1, 70)
    heads = [x.reshape(2, 70, -1, width).transpose(1, 2) for width in (96, 64, 32)]
    return *merged, *(ops.kernel_attention(4 * q, q, q.cos(), size) for q in heads)
