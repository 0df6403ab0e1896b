"""Attention that is one op with a program of its own inside: not read, and said so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import tome_fx

C = 32


class Flexible(nn.Module):
    """One block of FlexAttention on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 3 * C)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, C // 2)).permute(2, 0, 3, 1, 4).unbind(0)
        return (x + flex_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def test_flexible_attention_is_named() -> None:
    model = Flexible().eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(tome_fx.NoAttentionFoundError, match="a program of its own inside"):
        tome_fx.transform(model, 3, example_inputs=x)
