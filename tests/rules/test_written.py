"""Values that are written piece by piece: in-place assignments of a model's own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY, C, N, images, random, unmerged

pytestmark = TINY
TOKEN = random(1, 1, C)


def by_channels(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, :, :4] = x[:, :, 4:]
    out[..., 4:] = x[..., :4].sin()
    return out


def by_channel(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 0] = x[:, :, 1]
    return out


def patches_anew(x: Tensor) -> Tensor:
    out = x.clone()
    out[:, 1:] = x[:, 1:].sin()
    return out


def patches_added(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += 0.1 * x[:, :1]
    return x


def assembled(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    out[:, :1] = TOKEN
    out[:, 1:] = x[:, 1:]
    return out


def class_token_anew(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 2 * x[:, 0]
    return x


WRITES = {
    f.__name__: f
    for f in (by_channels, by_channel, patches_anew, patches_added, assembled, class_token_anew)
}


def test_what_is_written_to_tokens_stays_merged() -> None:
    assert unmerged(WRITES, how="beside") == set()


def halves(block: Block, x: Tensor) -> Tensor:
    x = x + block.joined(F.scaled_dot_product_attention(*block.keys_of(x)))
    y = x.clone()
    y[:, :16].clamp_(-0.5, 0.5)
    y[:, 16:].clamp_(-0.5, 0.5)
    return x + block.mlp(y)


def by_index(block: Block, x: Tensor) -> Tensor:
    x = x + block.joined(F.scaled_dot_product_attention(*block.keys_of(x)))
    places, y = torch.arange(0, x.shape[1], 2), torch.full_like(x, torch.nan)
    y[:, places] = x[:, places].sin()
    y[:, places + 1] = x[:, places + 1].sin()
    return x + block.mlp(y)


class Block(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run, self.qkv, self.out = run, nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def keys_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def joined(self, heads: Tensor) -> Tensor:
        y: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.run(self, x)
        return y


@pytest.mark.parametrize(("run", "schedule"), [(halves, [3, 0]), (by_index, [3, 0])])
def test_what_is_half_written_is_not_averaged(run: Any, schedule: list[int]) -> None:
    """Each token has its like in the other half, an odd number of places away."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(run), Block(run)).double().eval()
    first = torch.randn(3, 16, 8, dtype=torch.float64)
    x = torch.cat([first, first.roll(-1, 1)], 1)
    fast = tome_fx.transform(model, schedule, example_inputs=x)
    assert fast.schedule == (*schedule,)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_whole_that_is_written_is_none_of_the_inputs() -> None:
    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Block(halves)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.zeros_like(x)
            y[:, 0:32] = x
            return self.body(x), y

    x = torch.randn(3, 32, 8)
    _, y = tome_fx.transform(Copied().eval(), 3, example_inputs=x)(x)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


class Assembled(nn.Module):
    """A sequence that is written into an empty tensor, the class token first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        x = patches.new_zeros(patches.shape[0], N, 8)
        x[:, 0] = self.token
        x[:, 1:] = patches
        return self.block(self.block(x))[:, 0]


def test_a_sequence_may_be_written_piece_by_piece() -> None:
    labels = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)
    model, x = Assembled().double().eval(), images(labels)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2, 2)
    assert [(p.where, p.count) for p in fast.report.protected] == [("front", 1)]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
    other = torch.randn_like(x)
    assert (fast(other) - model(other)).abs().max() > 1e-6
