"""The models whose rewritten programs are committed, in plain PyTorch.

Letters: ``B`` images, ``N`` tokens, ``C`` width, ``H`` heads, ``D`` head width. No size is a
multiple of five, see `tests.golden.printer`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.golden.printer import listing

H, D, CLASSES = 2, 4, 7
C = H * D


class Attention(nn.Module):
    """Fused attention from a packed projection."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.q_norm = nn.LayerNorm(D) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(D) if norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, N, C]`` to q, k, v, each ``[B, H, N, D]``."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*self.project(x))
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Relative(Attention):
    """Eager attention with a bias for each pair of places on the grid."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), H))
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        place = torch.stack([y.flatten(), x.flatten()])
        far = place[:, :, None] - place[:, None]
        index = (far[0] + rows - 1) * (2 * columns - 1) + far[1] + columns - 1
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        n = self.index.shape[0]
        bias = self.table[self.index.view(-1)].view(n, n, H).permute(2, 0, 1)
        scores = (q * D**-0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        y = scores.softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(x.shape))


class Scale(nn.Module):
    """A learned gain for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, attention: nn.Module, scale: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attention, self.scale1, self.scale2 = attention, scale(), scale()
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Base(nn.Module):
    """Patches of 2 x 2, tables of prefix tokens in front, positions, blocks."""

    def __init__(self, blocks: list[Block], patches: int, *prefix: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 2, 2)
        self.prefix = nn.ParameterList(torch.zeros(1, number, C) for number in prefix)
        self.front = sum(prefix)
        self.positions = nn.Parameter(torch.zeros(1, self.front + patches, C))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, CLASSES)

    def tokens(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        if self.front:
            x = torch.cat([*(p.expand(x.shape[0], -1, -1) for p in self.prefix), x], dim=1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return x


class ClassToken(Base):
    """The logits of a class token."""

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(image))[:, 0])


class Average(Base):
    """The logits of the mean patch, behind the class token and the registers."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)[:, self.front :].mean(dim=1)
        return self.head(self.norm(x))


class Dense(Base):
    """The logits of the mean patch, and every patch."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.tokens(image))
        return self.head(x.mean(dim=1)), x


@dataclass(frozen=True)
class Case:
    """A model, its images' height and width, and its schedule."""

    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    r: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The committed listing."""
        return Path(__file__).with_name(f"{self.name}.txt")

    def text(self) -> str:
        """The listing of the model's rewritten program."""
        with warnings.catch_warnings():
            # Models this small pay more for merging than they save.
            warnings.simplefilter("ignore", tome_fx.ToMeWarning)
            fast = tome_fx.transform(
                self.make().eval(), list(self.r), example_inputs=(torch.zeros(2, 3, *self.size),)
            )
        return listing(fast.graph)


CASES = (
    Case(
        "class_token",
        lambda: ClassToken([Block(Attention()) for _ in range(2)], 12, 1),
        (8, 6),
        (4, 2),
    ),
    Case(
        "average_with_registers",
        lambda: Average([Block(Attention(norm=True), Scale) for _ in range(2)], 12, 1, 4),
        (8, 6),
        (4, 2),
    ),
    Case(
        "relative_positions",
        lambda: Dense([Block(Relative(4, 4)) for _ in range(2)], 16),
        (8, 8),
        (4, 3),
    ),
)
