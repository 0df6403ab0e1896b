"""Small models whose code asks whether it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.drawing import randomise

C, HEADS, N = 8, 2, 16


def exporting(x: Tensor) -> bool:
    return torch.compiler.is_exporting()


def symbolic(x: Any) -> bool:
    return isinstance(x, torch.fx.Proxy)


def traced(x: Any) -> bool:
    return isinstance(x, (FakeTensor, torch.fx.Proxy)) or torch.compiler.is_compiling()


def never(x: Tensor) -> bool:
    return False


class Scaled(nn.Module):
    """Twice its input, and three times while it is traced."""

    def __init__(self, asks: Callable[[Any], bool], traced: float = 3.0) -> None:
        super().__init__()
        self.asks, self.traced = asks, traced

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.traced if self.asks(x) else 2.0)


class Attention(nn.Module):
    """Causal when it is run, and not while it is traced, where ``asks`` says so."""

    def __init__(self, asks: Callable[[Any], bool]) -> None:
        super().__init__()
        self.qkv, self.out, self.asks = nn.Linear(C, 3 * C), nn.Linear(C, C), asks

    def forward(self, x: Tensor) -> Tensor:
        heads = (3, HEADS, C // HEADS)
        q, k, v = self.qkv(x).unflatten(2, heads).permute(2, 0, 3, 1, 4).unbind(0)
        causal = self.asks is not never and not self.asks(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, asks: Callable[[Any], bool]) -> None:
        super().__init__()
        self.attn, self.norm = Attention(asks), nn.LayerNorm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Model(nn.Module):
    def __init__(
        self,
        stem: Callable[[Any], bool] = never,
        attention: Callable[[Any], bool] = never,
        traced: float = 3.0,
    ) -> None:
        super().__init__()
        self.stem, self.scaled = nn.Linear(6, C), Scaled(stem, traced)
        self.blocks, self.head = nn.Sequential(Block(attention), Block(never)), nn.Linear(C, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.blocks(self.scaled(self.stem(x))).mean(1))}


def made(**asks: Any) -> tuple[Model, Tensor]:
    model = Model(**asks).double().eval()
    randomise(model, 3)
    return model, torch.randn(2, N, 6, dtype=torch.float64)
