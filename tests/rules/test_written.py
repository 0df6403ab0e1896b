"""Values that are written piece by piece: in-place assignments of a model's own code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY, C, N, check, images, random, unmerged

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


def in_chunks(x: Tensor) -> Tensor:
    """Attention of a few queries at a time, into memory that holds anything yet."""
    out = torch.full_like(x, torch.nan)
    for i in range(0, N, 5):
        out[:, i : i + 5] = F.scaled_dot_product_attention(x[:, i : i + 5], x, x)
    return out


def halves(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :7].clamp_(-0.5, 0.5)
    x[:, 7:].clamp_(-0.5, 0.5)
    return x


def every_second(x: Tensor) -> Tensor:
    out = torch.full_like(x, torch.nan)
    out[:, 0::2] = x[:, 0::2].sin()
    out[:, 1::2] = x[:, 1::2].sin()
    return out


def by_index(x: Tensor) -> Tensor:
    out = torch.full_like(x, torch.nan)
    places = torch.arange(0, N, 2)
    out[:, places] = x[:, places].sin()
    out[:, places[:-1] + 1] = x[:, places[:-1] + 1].sin()
    return out


PIECES = {f.__name__: f for f in (in_chunks, halves, every_second, by_index)}


@pytest.mark.few(1)
@pytest.mark.parametrize("remerge", ["mean", "never"])
def test_what_is_half_written_is_not_averaged(remerge: str) -> None:
    for op in PIECES.values():
        assert check(op, how="beside", remerge=remerge)


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
