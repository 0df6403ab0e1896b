"""Ops with the schemas of libraries of kernels, which need a GPU to be installed.

What they compute is the formula, for heads behind tokens, ``[B, N, H, D]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.drawing import randomise

FLASH = "flash_attn::_flash_attn_forward"
XFORMERS = "xformers_flash::flash_fwd"
FLASH_3, XFORMERS_3 = "flash_attn_3::_flash_attn_forward", "xformers_flash3::flash_fwd"
ASKED_3 = "Tensor? cu_seqlens_q=None, int? max_seqlen_q=None, Tensor? page_table=None, "
WINDOWS = "int window_size_left=-1, int window_size_right=-1, float softcap=0.0, "
LENGTHS = "Tensor? cu_seqlens_q, Tensor? seqused_k, int max_seqlen_q, int max_seqlen_k, "
C, HEADS = 24, 2


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, **more: Any) -> Tensor:
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    more["enable_gqa"] = q.shape[2] != k.shape[2]
    return scaled_dot_product_attention(*heads, scale=scale, **more).transpose(1, 2).contiguous()


def _made(q: Tensor, count: int) -> tuple[Tensor, ...]:
    batch, tokens, heads, _ = q.shape
    return (q.new_empty((batch, heads, tokens)), *(q.new_empty(2) for _ in range(count - 1)))


def _known(name: str) -> bool:
    space, op = name.split("::")
    return hasattr(getattr(torch.ops, space), op)


def define() -> None:
    """Register what no library of this process has."""
    if not _known(FLASH):

        @torch.library.custom_op(FLASH, mutates_args=())
        def flash_op(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            dropout_p: float,
            softmax_scale: float,
            causal: bool,
            window_size_left: int,
            window_size_right: int,
            softcap: float,
            alibi_slopes: Tensor | None,
            return_softmax: bool,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return (attended(q, k, v, softmax_scale, is_causal=causal), *_made(q, 3))  # type: ignore[return-value]

        flash_op.register_fake(lambda q, *rest: (torch.empty_like(q), *_made(q, 3)))
    if not _known(XFORMERS):

        @torch.library.custom_op(XFORMERS, mutates_args=())
        def xformers_op(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            cu_seqlens_q: Tensor | None,
            cu_seqlens_k: Tensor | None,
            seqused_k: Tensor | None,
            max_seqlen_q: int,
            max_seqlen_k: int,
            p: float,
            softmax_scale: float,
            is_causal: bool,
            window_left: int,
            window_right: int,
            return_softmax: bool,
            block_tables: Tensor | None,
        ) -> tuple[Tensor, Tensor, Tensor]:
            return (attended(query, key, value, softmax_scale), *_made(query, 2))  # type: ignore[return-value]

        xformers_op.register_fake(lambda query, *rest: (torch.empty_like(query), *_made(query, 2)))
    if not _known(FLASH_3):
        more = "float? softmax_scale=None, bool causal=False, bool rotary_interleaved=True"
        _define_by_schema(FLASH_3, f"{ASKED_3}{WINDOWS}{more}")
    if not _known(XFORMERS_3):
        more = "bool use_kvsplit=False, int window_left=-1, int window_right=-1"
        last = f"float p, float softmax_scale, bool is_causal, {more}"
        _define_by_schema(XFORMERS_3, f"{LENGTHS}{last}")


def _define_by_schema(name: str, more: str) -> None:
    first = "query, Tensor key, Tensor value" if name == XFORMERS_3 else "q, Tensor k, Tensor v"
    torch.library.define(name, f"(Tensor {first}, {more}) -> (Tensor, Tensor)")
    op = getattr(getattr(torch.ops, name.split("::")[0]), name.split("::")[1]).default
    names = [argument.name for argument in op._schema.arguments]

    def computed(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        asked = dict(zip(names, args, strict=False)) | kwargs
        return attended(*args[:3], asked["softmax_scale"]), *_made(args[0], 1)

    torch.library.impl(name, "cpu")(computed)
    torch.library.register_fake(name)(lambda q, *args, **kw: (torch.empty_like(q), *_made(q, 1)))


class Block(nn.Module):
    """Attention by a kernel of ``attend(q, k, v)``, and an MLP."""

    def __init__(self, attend: Callable[..., Tensor], key_heads: int) -> None:
        super().__init__()
        self.attend, width = attend, C // HEADS * key_heads
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, width), nn.Linear(C, width)
        self.norm, self.out = nn.LayerNorm(C), nn.Linear(C, C)
        self.mlp = nn.Sequential(
            nn.LayerNorm(C), nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = [part(y).unflatten(2, (-1, C // HEADS)) for part in (self.q, self.k, self.v)]
        x = x + self.out(self.attend(*heads).flatten(2))
        return x + self.mlp(x)


def made(attend: Callable[..., Tensor], key_heads: int = HEADS) -> nn.Module:
    """Two blocks whose heads stand behind their tokens, every parameter random."""
    model = nn.Sequential(*(Block(attend, key_heads) for _ in range(2)))
    randomise(model, 3)
    return model.double().eval()


def flash(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    """As flash-attn calls its op."""
    asked = {"causal": False, "window_size_left": -1, "window_size_right": -1, "softcap": 0.0}
    asked |= {"dropout_p": 0.0, "softmax_scale": q.shape[-1] ** -0.5}
    last = {"alibi_slopes": None, "return_softmax": False}
    return torch.ops.flash_attn._flash_attn_forward(q, k, v, **{**asked, **last, **more})[0]


def flash_3(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    """As flash-attn for Hopper calls its op."""
    asked = {"softmax_scale": q.shape[-1] ** -0.5, **more}
    return torch.ops.flash_attn_3._flash_attn_forward(q, k, v, **asked)[0]


def xformers_3(q: Tensor, k: Tensor, v: Tensor, left: int = -1, right: int = -1) -> Tensor:
    how = (None, None, q.shape[1], k.shape[1], 0.0, q.shape[-1] ** -0.5, False)
    windows = {"window_left": left, "window_right": right}
    return torch.ops.xformers_flash3.flash_fwd(q, k, v, *how, **windows)[0]


def xformers(q: Tensor, k: Tensor, v: Tensor, left: int = -1, right: int = -1) -> Tensor:
    """As xformers calls its op for images of one length."""
    lengths = (None, None, None, q.shape[1], k.shape[1])
    how = (0.0, q.shape[-1] ** -0.5, False, left, right, False, None)
    return torch.ops.xformers_flash.flash_fwd(q, k, v, *lengths, *how)[0]
