"""Attention by landmarks (means of rows of tokens): these attend to each other, and never merge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.rules.common import C, Eager
from tests.zoo.entry import randomise

pytestmark = TINY
GRID = 4


class Landmarks(nn.Module):
    """Nyström's form: a softmax to the landmarks, their own inverted, and one from them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        few_q, few_k = (t.unflatten(1, (GRID, GRID)).mean(2) for t in (q, k))
        to, own, back = (
            (a @ b.mT).softmax(-1) for a, b in ((q, few_k), (few_q, few_k), (few_q, k))
        )
        inverse = own.mT / own.sum(-2, keepdim=True).amax(-1, keepdim=True)
        one = torch.eye(GRID, dtype=x.dtype)
        for _ in range(2):
            inverse = 0.25 * inverse @ (13 * one - own @ inverse @ (7 * one - own @ inverse))
        return x + self.out(to @ inverse @ (back @ v))  # type: ignore[no-any-return]


class Model(nn.Module):
    """A map of 4 x 4 patches through ``blocks``."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = (
            nn.Conv2d(3, C, 2, 2),
            nn.Sequential(*blocks),
            nn.Linear(C, 5),
        )
        randomise(self)
        self.double().eval()

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        return self.head(self.blocks(x).mean(1))  # type: ignore[no-any-return]


def test_rows_of_the_map_do_not_merge() -> None:
    x = torch.randn(3, 3, 2 * GRID, 2 * GRID, dtype=torch.float64)
    model = Model(Landmarks(), Landmarks())
    fast = tome_fx.transform(model, 3, example_inputs=x, min_ratio=0)
    assert [block.tokens_in for block in fast.report.blocks] == [GRID * GRID, GRID * GRID - 3]
    flat = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, flat), run(model, flat)) < 1e-9


def test_tokens_beside_them_do() -> None:
    x = torch.randn(3, 3, 2 * GRID, 2 * GRID, dtype=torch.float64)
    model = Model(Eager(), Landmarks(), Eager())
    fast = tome_fx.transform(model, 3, example_inputs=x)
    assert fast.schedule == (3, 3)
    flat = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, flat), run(model, flat)) < 1e-9
    assert distance(run(fast, x), run(model, x)) > 1e-6
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-9
