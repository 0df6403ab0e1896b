"""Clips whose patches are made of one frame each: the same places of all frames merge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY


class Factorised(nn.Module):
    """Two blocks within each frame, then one along time at each place."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        size = (depth, 4, 4)
        self.stem = nn.Conv3d(3, 8, size, size)
        self.inside, self.along = nn.Sequential(self.block(), self.block()), self.block()

    @staticmethod
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        images, frames, places, width = x.shape
        x = self.inside(x.reshape(images * frames, places, width))
        x = x.view(images, frames, places, width).transpose(1, 2)
        x = self.along(x.reshape(images * places, frames, width))
        return x.view(images, places * frames, width).mean(1)


def model(depth: int) -> nn.Module:
    made = Factorised(depth)
    randomise(made)
    return made.double().eval()


def test_a_stem_of_single_frames_leaves_the_frames() -> None:
    clips = model(1)
    x = torch.randn(2, 4, 3, 1, 2, dtype=torch.float64)
    x = x.repeat_interleave(16, 3).repeat_interleave(8, 4)
    fast = tome_fx.transform(clips, [4, 0], example_inputs=x)
    assert fast.schedule == (4, 0)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(clips, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


def test_a_stem_over_time_makes_places_of_frames() -> None:
    with pytest.raises(tome_fx.NoAttentionFoundError):
        tome_fx.transform(model(2), 4, example_inputs=torch.zeros(2, 8, 3, 16, 16).double())
