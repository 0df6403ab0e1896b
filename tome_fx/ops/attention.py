"""Attention over keys that stand for several tokens (equation 1), in forms that are equal.

``softmax(scale q k^T + log size) v`` is the same whether ``log size`` is a mask, a channel that the
keys have more, or the sizes weigh the values. Which one is fastest depends on the kernels that a
device has: those without a mask (FlashAttention, cuDNN) are closed to the first.

All take ``query [..., N, d]``, ``key [..., S, d]``, ``value [..., S, e]`` of one dtype and
``size [..., 1, S]``, which broadcasts against the logits, and return ``[..., N, e]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as fused

from tome_fx import kernels
from tome_fx.ops.rows import wide
from tome_fx.ops.sizes import add_log_size, key_bias


def mask_attention(query: Tensor, key: Tensor, value: Tensor, size: Tensor, **how: Any) -> Tensor:
    """``log size`` as an additive mask ``[..., 1, S]``, which no kernel writes out."""
    return fused(query, key, value, key_bias(query, size), **how)


def channel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
) -> Tensor:
    """``log size`` as channels of the keys that meet a one in each query: no mask is left.

    In half precision two channels hold it, the rounded value and what rounding left, so that the
    logit is as exact as a product of two channels is.
    """
    dtype = _dtype(query)
    scale = _scale(query, scale)
    column = size.transpose(-1, -2).log() / scale
    high = column.to(dtype)
    parts = [high] if dtype == column.dtype else [high, (column - high).to(dtype)]
    columns = torch.cat(parts, dim=-1).expand(*key.shape[:-1], len(parts))
    ones = query.new_ones(1, dtype=dtype).expand(*query.shape[:-1], len(parts))
    whole = _aligned(torch.cat([query.to(dtype), ones], dim=-1))
    keys = _aligned(torch.cat([key.to(dtype), columns], dim=-1))
    # Kernels want values as wide as the keys; what is added is zero and cut off again.
    values = _padded(value.to(dtype), whole.shape[-1])
    result = fused(whole, keys, values, dropout_p=dropout_p, scale=scale, enable_gqa=enable_gqa)
    return result[..., : value.shape[-1]]


def value_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Sizes as weights of the values: ``sum(p size v) / sum(p size)`` with a plain softmax ``p``.

    Not with dropout, which would have to drop the same in both sums. Weights are divided by a power
    of two, which is exact, so that no product leaves the range of half precision.
    """
    dtype, width = _dtype(query), value.shape[-1]
    scale = _scale(query, scale)
    top = size.amax(-1, keepdim=True).log2().ceil().exp2()
    column = (size / top).transpose(-1, -2).to(dtype).expand(*value.shape[:-1], 1)
    values = _aligned(torch.cat([value.to(dtype) * column, column], dim=-1))
    whole, keys = (_padded(x.to(dtype), values.shape[-1]) for x in (query, key))
    result = fused(whole, keys, values, scale=scale, enable_gqa=enable_gqa)
    return result[..., :width] / result[..., width : width + 1]


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``log size`` added by FlexAttention, in a kernel that ``torch.compile`` makes on a GPU.

    ``[B, H, N, d]`` only. Eager calls have no such kernel, and on a CPU it takes no values that the
    program itself makes: both take the mask.
    """
    if not torch.compiler.is_dynamo_compiling() or query.device.type == "cpu":
        return mask_attention(query, key, value, size, scale=scale, enable_gqa=enable_gqa)
    return weighed_scores(query, key, value, size, scale, enable_gqa)


def weighed_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`flex_attention` wherever it runs; without a compiler it is slow and warns."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    bias = size[:, 0, 0].expand(query.shape[0], -1).log()

    def weighed(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[b, k]

    result = flex(query, key, value, score_mod=weighed, scale=scale, enable_gqa=enable_gqa)
    assert isinstance(result, Tensor)
    return result


def kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``log size`` as a number for each key, in a Triton kernel of our own; elsewhere the mask.

    It is for inference: where gradients are recorded the mask serves.
    """
    query, key, value = _cast(query, key, value)
    if not _has_kernel(query, key, value):
        return mask_attention(query, key, value, size, scale=scale, enable_gqa=enable_gqa)
    return _by_kernel(query, key, value, size[:, 0, 0].float().log2(), scale)


def level_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    level: Tensor,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """:func:`kernel_attention` of sizes whose ``log2`` is there: ``level [B, S]``."""
    query, key, value = _cast(query, key, value)
    if not _has_kernel(query, key, value):
        bias = (level * math.log(2)).to(query.dtype)[:, None, None]
        return fused(query, key, value, bias, scale=scale, enable_gqa=enable_gqa)
    return _by_kernel(query, key, value, level.float(), scale)


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return not recorded and kernels.can_attend(query, key, value)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, level: Tensor, scale: float | None
) -> Tensor:
    scale = _scale(query, scale)
    result: Tensor = torch.ops.tome_fx.attend(query, key, value, level, scale)
    return result


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    size: Tensor,
    scale: float | None = None,
) -> Tensor:
    """As the equation is written, with logits in memory: the least work where tokens are few."""
    scale = _scale(query, scale)
    logits = (query * scale) @ key.transpose(-1, -2)
    return torch.softmax(logits + size.log().to(logits.dtype), dim=-1) @ value


def _is_traced(value: Tensor) -> bool:
    """Does a compiler or an export look on? That one runs in another thread says nothing here."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return torch.compiler.is_compiling() and type(value) is not Tensor


def attention(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    size: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """``softmax(scale query keys + mask + log size) value`` that a model writes out.

    Under a compiler or an export it is fused attention, as a compiler makes of attention without
    sizes. Eager it stays written, with derivatives of every order, which fused kernels lack.

    Args:
        query: ``[..., N, d]``, three or four axes, as ``value [..., S, e]``.
        keys: ``[..., d, S]``.
        size: ``[..., 1, S]``, of the rank of the logits.
        mask: additive, broadcasts against the logits ``[..., N, S]``.
    """
    if _is_traced(query):
        key, bias = keys.transpose(-2, -1), key_bias(query, size, mask)
        if query.dim() == 4:
            return fused(query, key, value, bias, scale=scale)
        # Fused kernels want heads: images and heads on one axis serve as heads.
        return fused(query[None], key[None], value[None], bias[None], scale=scale)[0]
    logits = query @ keys
    logits = logits if scale == 1.0 else logits * scale
    logits = logits if mask is None else logits + mask
    weight = torch.softmax(add_log_size(logits, size).to(wide(logits.dtype)), dim=-1)
    return weight.to(value.dtype) @ value


FORMS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "mask": mask_attention,
        "channel": channel_attention,
        "values": value_attention,
        "flex": flex_attention,
        "kernel": kernel_attention,
        "plain": plain_attention,
    }
)


def _cast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _dtype(query)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _dtype(query: Tensor) -> torch.dtype:
    """What fused attention computes in: autocast would cast only after columns are rounded."""
    kind = query.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return query.dtype


def _scale(query: Tensor, scale: float | None) -> float:
    """What logits are multiplied by; by default as fused attention does it."""
    return float(query.shape[-1] ** -0.5) if scale is None else scale


def _aligned(x: Tensor) -> Tensor:
    """Channels to a multiple of eight on a GPU, whose kernels load them so."""
    if x.device.type == "cpu":
        return x
    return _padded(x, -(-x.shape[-1] // 8) * 8)


def _padded(x: Tensor, width: int) -> Tensor:
    return pad(x, (0, width - x.shape[-1])) if width > x.shape[-1] else x
