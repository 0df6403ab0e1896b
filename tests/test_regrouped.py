"""Tokens of a coarse grid regrouped, several from each, in one row with those of a finer grid.

Pyramids are bridged so: ``[B, n, k * C]`` is read as ``[B, n * k, C]``, and attention sees all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.zoo.entry import randomise

pytestmark = TINY
C, SIDE = 8, 32


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)  # type: ignore[no-any-return]


def fine_first(fine: Tensor, coarse: Tensor) -> Tensor:
    return torch.cat([fine, coarse], 1)


def coarse_first(fine: Tensor, coarse: Tensor) -> Tensor:
    return torch.cat([coarse, fine], 1)


class Bridge(nn.Module):
    """Two grids, the coarse one twice as wide, with a block of its own in front if ``own``."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], own: bool) -> None:
        super().__init__()
        self.join, self.own = join, Block(2 * C) if own else nn.Identity()
        self.fine, self.coarse = nn.Conv2d(3, C, 4, 4), nn.Conv2d(3, 2 * C, 8, 8)
        self.blocks, self.head = nn.Sequential(Block(C), Block(C)), nn.Linear(C, 5)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image).flatten(2).mT
        coarse = self.own(self.coarse(image).flatten(2).mT).reshape(len(image), -1, C)
        return self.head(self.blocks(self.join(fine, coarse)))  # type: ignore[no-any-return]


def squares(kinds: int, batch: int = 2) -> Tensor:
    """Images of squares of one colour each, of ``kinds`` colours, as large as coarse patches."""
    generator = torch.Generator().manual_seed(3)
    colours = torch.randn(batch, 3, kinds, generator=generator, dtype=torch.float64)
    picked = torch.randint(0, kinds, (SIDE // 8 * (SIDE // 8),), generator=generator)
    rows = colours[..., picked].unflatten(-1, (SIDE // 8, SIDE // 8))
    return rows.repeat_interleave(8, -1).repeat_interleave(8, -2)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize(("join", "own"), [(fine_first, True), (coarse_first, True),
                                           (fine_first, False)])  # fmt: skip
def test_each_row_merges_within_itself(join: Any, own: bool, remerge: Any) -> None:
    model = Bridge(join, own)
    randomise(model)
    model.double().eval()
    noise = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    fast = tome_fx.transform(model, 1, example_inputs=(noise,), min_ratio=0, remerge=remerge)
    assert len(fast.report.blocks) >= 2 + own
    for x in (squares(1), squares(2)):
        assert distance(fast(x), model(x)) < 1e-9
    assert distance(fast(noise[:2]), fast(noise)[:2]) < 1e-9
    assert distance(fast(noise), model(noise)) > 1e-6
