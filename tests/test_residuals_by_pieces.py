"""Residuals that a model adds piece by piece, in place: the class token's and the patches'."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY, C, N, images, schedule_for

pytestmark = TINY
LABELS = (0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 5)


def class_token_first(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, :1] += y[:, :1]
    x[:, 1:] += y[:, 1:]
    return x


def patches_first(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += 0.5 * y[:, 1:]
    x[:, 0] += y[:, 0]
    return x


def from_the_end(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, : -(N - 1)] += y[:, :1]
    x[:, -(N - 1) :].add_(y[:, 1:])
    return x


def by_scatters(x: Tensor, y: Tensor) -> Tensor:
    row = torch.slice_scatter(x, x[:, :1] + y[:, :1], 1, 0, 1)
    return torch.slice_scatter(row, row[:, 1:] + y[:, 1:], 1, 1)


def through_what_was_written(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:] += y[:, 1:] + x[:, :1]
    x[:, 0] += x[:, 1:].amax(1)
    return x


class Block(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.qkv, self.out = join, nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 16), nn.GELU(), nn.Linear(16, C))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, C // 2)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.join(x, self.out(y))
        return self.join(x, self.mlp(x))


class Model(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, C, 2, 2), nn.Parameter(torch.randn(1, 1, C))
        self.blocks = nn.Sequential(Block(join), Block(join))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(image), -1, -1), patches], 1)
        y: Tensor = self.blocks(x)
        return y[:, 0]


@pytest.mark.parametrize(
    "join",
    [class_token_first, patches_first, from_the_end, by_scatters, through_what_was_written],
)
def test_a_residual_by_pieces_is_a_residual(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Model(join).double().eval(), images(LABELS)
    want = model(x)
    fast = tome_fx.transform(model, schedule_for(LABELS, 1, 2), example_inputs=x)
    assert all(fast.schedule)
    assert not fast.report.unmerges
    torch.testing.assert_close(fast(x), want, rtol=1e-9, atol=1e-9)
    other = torch.randn_like(x)
    assert (fast(other) - model(other)).abs().max() > 1e-6
    torch.testing.assert_close(
        tome_fx.transform(model, 0, example_inputs=x)(other), model(other), rtol=0, atol=0
    )


def test_outputs_share_no_memory_that_they_did_not_share() -> None:
    class Returned(Model):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            patches = self.stem(image).flatten(2).transpose(1, 2)
            x = self.blocks(patches)
            row = x.clone()
            row[:, :1] = 0
            return x, row[:, 1:]

    model, x = Returned(class_token_first).eval(), torch.randn(2, 3, 8, 6)
    whole, rest = tome_fx.transform(model, 0, example_inputs=x)(x)
    before = whole.clone()
    rest.zero_()
    assert torch.equal(whole, before)
