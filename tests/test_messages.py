"""One token of each frame looks at those of the others, and comes back to its frame's tokens.

Two frames may say the same and still differ, so what merged of the messages merges no frames.
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
C, FRAMES = 8, 4
Join = Callable[[Tensor, Tensor], Tensor]


def beside(h: Tensor, m: Tensor) -> Tensor:
    return torch.cat([h, m.reshape(-1, 1, C)], 1)


def added(h: Tensor, m: Tensor) -> Tensor:
    return h + m.reshape(-1, 1, C)


def by_frames(h: Tensor, m: Tensor) -> Tensor:
    framed = h.unflatten(0, m.shape[:2])
    return torch.cat([framed, m.unsqueeze(2)], 2).flatten(0, 1)


def gated(h: Tensor, m: Tensor) -> Tensor:
    return h * m.sigmoid().reshape(-1, 1, C)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class Model(nn.Module):
    """Frames ``[B, T, 3, H, W]``; each layer asks the frames by ``message``, then looks within."""

    def __init__(self, join: Join, message: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.message, self.stem = join, message, nn.Conv2d(3, C, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, C))
        self.over, self.within = (
            nn.ModuleList(Attention() for _ in range(2)) for _ in ("over", "within")
        )

    def forward(self, clip: Tensor) -> Tensor:
        frames = clip.shape[:2]
        h = self.stem(clip.flatten(0, 1)).flatten(2).mT
        h = torch.cat([self.cls.expand(len(h), -1, -1), h], 1)
        tokens = h.shape[1]
        for over, within in zip(self.over, self.within, strict=True):
            h = within(self.join(h, over(self.message(h).unflatten(0, frames))))[:, :tokens]
        return h.unflatten(0, frames).mean(2)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize("join", [beside, added, by_frames, gated])
def test_equal_messages_of_different_frames_merge_no_frames(join: Join, remerge: Any) -> None:
    """At first all class tokens are the same, and the first merge is of messages alone."""
    model = Model(join, lambda h: h[:, 0]).double().eval()
    randomise(model)
    clip = torch.randn(2, FRAMES, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 2, example_inputs=(clip,), min_ratio=0, remerge=remerge)
    depth = len(fast.report.blocks)
    assert depth >= 2
    fast.r = [2] + [0] * (depth - 1)
    assert fast.schedule[0] == 2
    assert distance(fast(clip), model(clip)) < 1e-9
    whys = {u.reason for u in fast.report.unmerges if u.op != "output"}
    assert whys == {"it meets rows of places, of each of which one value has merged"}


@torch.no_grad()
def test_later_messages_are_matched_anew() -> None:
    """Frames of two kinds: their messages differ from the second layer on."""
    model = Model(beside, lambda h: h[:, 0]).double().eval()
    randomise(model)
    kinds = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    clip = kinds[:, [0, 0, 1, 1]]
    fast = tome_fx.transform(model, 1, example_inputs=(clip,), min_ratio=0)
    messages = [block.tokens_in == FRAMES for block in fast.report.blocks]
    fast.r = [int(own) for own in messages]
    assert sum(fast.schedule) == 2
    assert distance(fast(clip), model(clip)) < 1e-9
