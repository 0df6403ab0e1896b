"""A value of each image, once for each of its tokens, on an axis of images and tokens.

Attention along time has its tokens beside the images, ``[B * N, T, C]``, and what conditions it, a
mask of frames or a class token is written out so.
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
C, FRAMES, SIDE = 8, 3, 4
N = SIDE * SIDE
Write = Callable[[Tensor], Tensor]


def interleaved(x: Tensor) -> Tensor:
    return x.repeat_interleave(N, 0)


def expanded(x: Tensor) -> Tensor:
    return x[:, None].expand(-1, N, *x.shape[1:]).reshape(-1, *x.shape[1:])


def attend(qkv: nn.Linear, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(*qkv(x).chunk(3, -1), mask)


def shifted(model: Any, y: Tensor, told: Tensor) -> Tensor:
    return y + attend(model.along, y + model.write(model.told(told))[:, None])  # type: ignore[no-any-return]


def scaled(model: Any, y: Tensor, told: Tensor) -> Tensor:
    """As adaptive norms have it: a scale and a gate."""
    gate = model.write(model.told(told))[:, None]
    return y + gate * attend(model.along, y * (1 + gate))  # type: ignore[no-any-return]


def masked(model: Any, y: Tensor, told: Tensor) -> Tensor:
    """Some frames are no part of the clip."""
    shown = told.abs() + torch.arange(1.0, -FRAMES, -1.0)[:FRAMES] > 0
    return y + attend(model.along, y, model.write(shown)[:, None])


def with_class(model: Any, y: Tensor, told: Tensor) -> Tensor:
    """A class token stands in front of the frames at every place."""
    row = torch.cat([model.write(model.told(told))[:, None], y], 1)
    return (row + attend(model.along, row))[:, 1:]


class Clip(nn.Module):
    """Within frames, then along time, twice; ``[B, T, 3, H, W]`` and a number for each clip."""

    def __init__(self, write: Write, along: Callable[..., Tensor]) -> None:
        super().__init__()
        self.write, self.use = write, along
        self.stem, self.told = nn.Conv2d(3, C, 2, 2), nn.Linear(1, C)
        self.within, self.along = nn.Linear(C, 3 * C), nn.Linear(C, 3 * C)
        self.mlp = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))

    def forward(self, clip: Tensor, told: Tensor) -> Tensor:
        images = clip.shape[0]
        x = self.stem(clip.flatten(0, 1)).flatten(2).mT
        for _ in range(2):
            x = x + attend(self.within, x)
            x = x + self.mlp(x)
            y = x.reshape(images, FRAMES, N, C).transpose(1, 2).reshape(-1, FRAMES, C)
            y = self.use(self, y, told)
            x = y.reshape(images, N, FRAMES, C).transpose(1, 2).reshape(-1, N, C)
        return x.unflatten(0, (images, FRAMES))


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize("write", [interleaved, expanded])
@pytest.mark.parametrize("along", [shifted, scaled, masked, with_class])
def test_stays_merged(along: Any, write: Write, remerge: Any) -> None:
    model = Clip(write, along)
    randomise(model)
    model.double().eval()
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(3, FRAMES, 3, 8, 8, generator=generator, dtype=torch.float64)
    told = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    fast = tome_fx.transform(model, 2, example_inputs=(noise, told), min_ratio=0, remerge=remerge)
    assert fast.schedule == (2, 2)
    assert [u.op for u in fast.report.unmerges] == ["output"]
    equal = noise[..., :2, :2].repeat(1, 1, 1, SIDE, SIDE)  # within each frame
    assert distance(fast(equal, told), model(equal, told)) < 1e-9
    assert distance(fast(noise[:2], told[:2]), fast(noise, told)[:2]) < 1e-9
    assert distance(fast(noise, told), model(noise, told)) > 1e-6
