"""A value that is the same at each position beside merged tokens: a class token put to each patch.

Dense heads join every patch with the class token, by channels, before the patches take their places
on the grid.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY
C, N = 16, 16


def by_number(token: Tensor, patches: Tensor) -> Tensor:
    return torch.cat((patches, token.expand(-1, patches.shape[1], -1)), -1)


def by_sizes(token: Tensor, patches: Tensor) -> Tensor:
    return torch.cat((token.expand(patches.shape), patches), -1)


def by_repeat(token: Tensor, patches: Tensor) -> Tensor:
    return torch.cat((patches, token.repeat(1, N, 1)), 2)


def beside(token: Tensor, patches: Tensor) -> Tensor:
    return torch.stack((patches, token.expand(-1, N, -1)), 2).flatten(2)


class Dense(nn.Module):
    """Blocks, and a head on the grid for each of them."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], blocks: int = 2) -> None:
        super().__init__()
        self.join, self.stem = join, nn.Conv2d(3, C, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, C))
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(blocks))
        self.mlp = nn.ModuleList(nn.Linear(C, C) for _ in range(blocks))
        self.readout = nn.ModuleList(nn.Linear(2 * C, C) for _ in range(blocks))
        self.heads = nn.ModuleList(
            nn.Conv2d(C, 4, 3, padding=1, padding_mode="circular") for _ in range(blocks)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        found = []
        for qkv, mlp, readout, head in zip(
            self.qkv, self.mlp, self.readout, self.heads, strict=True
        ):
            q, k, v = qkv(x).chunk(3, -1)
            x = x + F.scaled_dot_product_attention(q, k, v)
            x = x + F.gelu(mlp(x))
            y = F.gelu(readout(self.join(x[:, :1], x[:, 1:])))
            found.append(head(y.transpose(1, 2).reshape(-1, C, 4, 4)))
        return found


@pytest.mark.few(3)
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize("join", [by_number, by_sizes, by_repeat, beside])
def test_the_class_token_beside_each_patch_stays_merged(
    join: Callable[[Tensor, Tensor], Tensor], remerge: str
) -> None:
    model = Dense(join).double().eval()
    randomise(model)
    x = torch.randn(2, 3, 8, 8).double()
    fast = tome_fx.transform(model, 3, example_inputs=x, min_ratio=0, remerge=remerge)
    assert [u.op for u in fast.report.unmerges] == ["aten.pad.default"] * 2
    colour = torch.randn(3, 3, 1, 1).double().expand(3, 3, 8, 8).contiguous()
    ours, theirs = run(fast, colour), run(model, colour)
    assert max(map(distance, ours, theirs)) < 1e-9
    assert distance(run(fast, x)[1], run(model, x)[1]) > 1e-6
