"""Heads that are cut from the channels and put side by side on the axis of the images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY
C, HEADS = 8, 2


def in_rows(x: Tensor) -> Tensor:
    """``[B, N, C]`` -> ``[heads * B, N, C / heads]``."""
    return torch.cat(x.split(C // HEADS, 2), 0)


class Block(nn.Module):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(C, C) for _ in range(4))
        self.norm, self.inside = nn.LayerNorm(C), inside

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (in_rows(part(x)) for part in (self.q, self.k, self.v))
        y = torch.softmax(q.bmm(k.transpose(1, 2)) / 2, 2).bmm(v)
        y = q + y if self.inside else y
        y = torch.cat(y.split(x.size(0), 0), 2)
        y = y if self.inside else x + y
        return self.norm(y + torch.relu(self.out(y)))


class Model(nn.Module):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 2, 2)
        self.blocks = nn.Sequential(*(Block(inside) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x).flatten(2).mT).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("inside", [False, True], ids=["around", "within the heads"])
def test_heads_beside_the_images_merge(inside: bool) -> None:
    model = Model(inside)
    randomise(model)
    model = model.double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 3, example_inputs=x)
    assert fast.schedule == (3, 3, 3)
    assert fast.report.unmerges == ()
    colour = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, x), run(model, x)) > 1e-6
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-9
    more = x[[0, 1, 2, 1, 0]]
    assert distance(run(fast, more), run(fast, x)[[0, 1, 2, 1, 0]]) < 1e-9


class Views(Model):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x.flip(-1)], 0))


class Stacked(Model):
    """Groups of a convolution keep the channels of two images apart."""

    def __init__(self, inside: bool) -> None:
        super().__init__(inside)
        self.two = nn.Conv2d(6, 6, 1, groups=2)

    def views(self, x: Tensor) -> Tensor:
        first, second = self.two(torch.cat([x, x.flip(-1)], 1)).chunk(2, 1)
        return torch.cat([first, second], 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.views(x))


@pytest.mark.parametrize("stacked", [False, True])
def test_views_of_an_image_stay_apart(stacked: bool) -> None:
    """Two copies of the channels, or pieces of them, are no heads: each view is as an image."""
    model = Stacked(False) if stacked else Views(False)
    one, x = Model(False), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    randomise(model)
    one.load_state_dict(model.state_dict(), strict=False)
    model, one = model.double().eval(), one.double().eval()
    views = run(model.views, x) if stacked else torch.cat([x, x.flip(-1)])
    fast = tome_fx.transform(model, 3, example_inputs=x, min_ratio=0)
    alone = tome_fx.transform(one, 3, example_inputs=views, min_ratio=0)
    assert fast.schedule == alone.schedule == (3, 3, 3)
    assert fast.token_map(x).shape == (3, 2, 2, 16)
    assert distance(run(fast, x), run(alone, views)) < 1e-12
