"""Positions that come in as numbers, and the rotary tables that are made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.zoo.entry import randomise

pytestmark = TINY
C, PLACES, DEPTH = 16, 24, 2


class Turned(nn.Module):
    """Patches by a product, turned by angles from a table or from the positions themselves."""

    def __init__(self, looks_up: bool = False, table_first: bool = False) -> None:
        super().__init__()
        self.looks_up, self.table_first = looks_up, table_first
        self.stem, self.table = nn.Linear(12, C), nn.Parameter(torch.zeros(PLACES, 2))
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(DEPTH))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C)) for _ in range(DEPTH)
        )

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """``[B, N, 4 heads, 4]``, by ``[N]`` or ``[B, N]``."""
        rates = torch.tensor([1.0, 0.3], dtype=x.dtype)
        angle = self.table[positions] if self.looks_up else positions[..., None] * rates
        cos, sin = (t.repeat(1, 1, 2)[..., None, :] for t in (angle.cos(), angle.sin()))
        first, second = x.chunk(2, -1)
        other = torch.cat([-second, first], -1)
        return cos * x + sin * other if self.table_first else x * cos + other * sin

    def forward(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(patches)
        if positions.dim() == 1:
            positions = positions[None]
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            q, k, v = (t.unflatten(-1, (4, 4)) for t in qkv(x).chunk(3, -1))
            q, k = (self.turned(t, positions) for t in (q, k))
            y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
            x = x + y.transpose(1, 2).flatten(2)
            x = x + mlp(x)
        before = x.unflatten(-1, (4, 4))
        return x.mean(1), self.turned(before, positions).norm(dim=-1) / before.norm(dim=-1)


def turned(**options: bool) -> Turned:
    model = Turned(**options)
    randomise(model)
    return model.double().eval()


def given(images: int, own: bool) -> tuple[Tensor, Tensor]:
    patches = torch.randn(images, PLACES, 12, dtype=torch.float64)
    orders = [torch.randperm(PLACES) for _ in range(images)]
    return patches, torch.stack(orders) if own else torch.arange(PLACES)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("looks_up", [False, True])
@pytest.mark.parametrize("table_first", [False, True])
def test_rotations_stay_rotations(own: bool, looks_up: bool, table_first: bool) -> None:
    """A group is turned by its representative's angles: a mean of rotations would shrink it."""
    model, x = turned(looks_up=looks_up, table_first=table_first), given(3, own)
    first = (x[0][:2], x[1][:2] if own else x[1])
    fast = tome_fx.transform(model, 5, example_inputs=first, min_ratio=0)
    assert fast.schedule == (5, 5)
    assert not [u for u in fast.report.unmerges if "averaged" in u.reason]
    result, lengths = fast(*x)
    assert (lengths - 1).abs().max() < 1e-12
    assert distance(result, model(*x)[0]) > 1e-6
    one = (x[0][1:2], x[1][1:2] if own else x[1])
    assert distance(fast(*one)[0], result[1:2]) < 1e-9
    fast.r = 0
    assert torch.equal(fast(*x)[0], model(*x)[0])


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("table_first", [False, True])
def test_equal_patches_at_equal_places_merge_without_a_trace(table_first: bool) -> None:
    model = turned(table_first=table_first)
    patches, _ = given(2, own=True)
    x = patches[:, :12].repeat_interleave(2, 1), torch.arange(12).repeat_interleave(2).expand(2, 24)
    fast = tome_fx.transform(model, [8, 0], example_inputs=x, min_ratio=0)
    assert fast.schedule == (8, 0)
    assert distance(fast(*x)[0], model(*x)[0]) < 1e-9
