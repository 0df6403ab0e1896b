"""Attention and blocks of the hand-written Vision Transformers in `tests.models`.

Letters: ``B`` batch, ``N`` tokens, ``C`` width, ``H`` heads, ``D`` head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.models import Plain


def add_bias(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Add a float bias, or hide what a boolean mask does not show."""
    if bias is None:
        return scores
    if bias.dtype == torch.bool:
        return scores.masked_fill(~bias, float("-inf"))
    return bias + scores


class Attention(nn.Module):
    """Multi-head self-attention in the spelling that the config asks for."""

    def __init__(self, config: Plain) -> None:
        super().__init__()
        self.config = config
        names = ["q", "k", "v"] if config.projection == "three" else ["qkv"]
        for name in names:
            width = config.dim * (3 // len(names))
            self.add_module(name, nn.Linear(config.dim, width))
        self.out = nn.Linear(config.dim, config.dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, N, C]`` -> q, k, v, each ``[B, H, N, D]``."""
        b, n, c = x.shape
        h, d = self.config.heads, self.config.head_dim
        if self.config.projection == "packed":
            q, k, v = self.qkv(x).reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4)
            return q, k, v
        if self.config.projection == "heads":
            q, k, v = self.qkv(x).view(b, n, h, 3 * d).transpose(1, 2).chunk(3, dim=-1)
            return q, k, v
        if self.config.projection == "three":
            parts = (self.q(x), self.k(x), self.v(x))
        elif self.config.projection == "chunk":
            parts = self.qkv(x).chunk(3, dim=2)
        else:
            parts = self.qkv(x).split(c, dim=-1)
        q, k, v = (part.reshape(b, n, h, d).transpose(1, 2) for part in parts)
        return q, k, v

    def forward(self, x: Tensor, bias: Tensor | None, rotate: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.project(x)
        if rotate is not None:
            q, k = self.turn(q, rotate), self.turn(k, rotate)
        return self.out(self.mix(q, k, v, bias).transpose(1, 2).reshape(b, n, c))

    def turn(self, x: Tensor, table: Tensor) -> Tensor:
        """Rotary positions on the patches, the class token left alone."""
        config = self.config
        start = config.front
        before, patches, after = x.split(
            [start, config.stream, config.protected - start], dim=2
        )  # as models do it: the prefix apart, then a cat
        left, right = patches.chunk(2, dim=-1)
        turned = patches * table[0] + torch.cat([-right, left], dim=-1) * table[1]
        return torch.cat([t for t in (before, turned, after) if t.shape[2]], dim=2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """softmax(q k' / sqrt(D) + bias) v on ``[B, H, N, D]``."""
        scale = self.config.head_dim**-0.5
        kernel = self.config.kernel
        if kernel == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if kernel in ("bmm", "baddbmm"):
            return self.mix_folded(q, k, v, bias)
        if kernel == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            total = (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
            return (q @ (k.transpose(2, 3) @ v)) / total
        if kernel == "covariance":
            q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
            return v @ (k.transpose(2, 3) @ q).softmax(dim=2)
        if kernel == "matmul":
            scores = (q * scale) @ k.transpose(-2, -1)
        elif kernel == "einsum":
            scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
        else:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / self.config.head_dim**0.5
        scores = add_bias(scores, bias)
        if kernel == "matmul":
            return torch.matmul(F.softmax(scores, dim=-1), v)
        return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(dim=3), v)

    def mix_folded(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """The same with batch and heads folded into one axis."""
        b, h, n, d = q.shape
        q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
        floats = bias is not None and bias.dtype != torch.bool
        if floats and self.config.kernel == "baddbmm":
            start = bias.expand(b, h, n, n).reshape(b * h, n, n)
            scores = torch.baddbmm(start, q, k.transpose(1, 2), alpha=d**-0.5)
        else:
            scores = torch.bmm(q, k.transpose(1, 2)) * d**-0.5
            if bias is not None:
                scores = add_bias(scores.view(b, h, n, n), bias).view(b * h, n, n)
        return torch.bmm(scores.softmax(dim=2), v).view(b, h, n, d)


class Mha(nn.Module):
    """`nn.MultiheadAttention` behind the same signature."""

    def __init__(self, config: Plain) -> None:
        super().__init__()
        self.config = config
        self.attention = nn.MultiheadAttention(
            config.dim, config.heads, batch_first=not config.sequence_first
        )

    def forward(self, x: Tensor, bias: Tensor | None, rotate: Tensor | None) -> Tensor:
        if bias is not None and bias.dtype == torch.bool:
            bias = ~bias  # here True hides
        return self.attention(x, x, x, attn_mask=bias, need_weights=self.config.weights)[0]


class Block(nn.Module):
    """Attention and MLP, with the norms where the config puts them."""

    def __init__(self, config: Plain) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = Mha(config) if config.kind == "mha" else Attention(config)
        wide = 3 * config.dim
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, wide), nn.GELU(), nn.Linear(wide, config.dim)
        )

    def attend(self, x: Tensor, bias: Tensor | None, rotate: Tensor | None) -> Tensor:
        high, wide = self.config.grid
        if self.config.form == "grid":
            return self.attention(x.flatten(1, 2), bias, rotate).reshape(-1, high, wide, x.shape[3])
        if self.config.form == "image":
            y = self.attention(x.flatten(2).transpose(1, 2), bias, rotate)
            return y.transpose(1, 2).unflatten(2, (high, wide))
        own_sequence_first = self.config.sequence_first and self.config.kind == "own"
        x = x.transpose(0, 1) if own_sequence_first else x
        y = self.attention(x, bias, rotate)
        return y.transpose(0, 1) if own_sequence_first else y

    def norm(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A norm over the channels, which an image has on axis 1."""
        if self.config.form == "image":
            return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return layer(x)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP; on an image its linears are convolutions of one pixel."""
        if self.config.form != "image":
            return self.mlp(x)
        wide, activation, narrow = self.mlp
        x = activation(F.conv2d(x, wide.weight[..., None, None], wide.bias))
        return F.conv2d(x, narrow.weight[..., None, None], narrow.bias)

    def forward(self, x: Tensor, bias: Tensor | None, rotate: Tensor | None) -> Tensor:
        norm, last = self.config.norm, self.config.residual_last
        if norm == "parallel":
            y = self.norm(self.first, x)
            return x + self.attend(y, bias, rotate) + self.feed(y)
        if norm == "post":
            y = self.attend(x, bias, rotate)
            x = self.norm(self.first, y + x if last else x + y)
            return self.norm(self.second, x + self.feed(x))
        y = self.attend(self.norm(self.first, x), bias, rotate)
        if norm == "sandwich":
            y = self.norm(self.first, y)
        x = y + x if last else x + y
        return x + self.feed(self.norm(self.second, x))
