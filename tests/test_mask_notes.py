"""The note on masks is for what hides tokens: a bias that is computed or expanded hides none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import GRID, PATCHES, TINY, C, D, H, Projected, heads, joined

pytestmark = TINY
TABLE = torch.randn(D, PATCHES)
SLOPES = -torch.arange(float(PATCHES)).expand(H, PATCHES, PATCHES)


def of_queries(q: Tensor) -> Tensor:
    return 0.3 * (q @ TABLE)


def for_every_image(q: Tensor) -> Tensor:
    return SLOPES.expand(q.shape[0], -1, -1, -1).contiguous()


def of_likeness(q: Tensor) -> Tensor:
    """Each query looks at those that are like it."""
    likeness = q @ q.mT
    return torch.zeros_like(likeness).masked_fill(likeness < 0, -1e4)


MASKS: dict[Callable[[Tensor], Tensor], bool] = {
    of_queries: False,
    for_every_image: False,
    of_likeness: True,
}


class Model(nn.Module):
    """Two blocks with fused attention that has a mask by ``mask``, between a stem and a head."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()

        def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = map(heads, (q, k, v))
            return joined(F.scaled_dot_product_attention(q, k, v, mask(q)))

        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.blocks = nn.Sequential(Projected(mix), Projected(mix))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        return self.head(self.blocks(x).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mask", MASKS)
def test_what_may_hide_is_noted(mask: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 3, 2 * GRID[0], 2 * GRID[1])
    report = tome_fx.explain(Model(mask).eval(), 1, example_inputs=x)
    assert len(report.blocks) == 2
    assert any("mask differs" in note for note in report.notes) == MASKS[mask]


class Padded(nn.Module):
    """A class token in front, and a mask of the patches' padding, with it joined in some way."""

    def __init__(self, joined_in: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.joined_in, self.front = joined_in, nn.Parameter(torch.randn(1, 1, C))
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.layers = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(2))

    def forward(self, image: Tensor, real: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        x = torch.cat([self.front.expand(x.shape[0], -1, -1), x], 1)
        for layer in self.layers:
            q, k, v = map(heads, layer(x).chunk(3, -1))
            mask = self.joined_in(real)[:, None, None]
            x = x + joined(F.scaled_dot_product_attention(q, k, v, mask))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


def padded_in_front(real: Tensor) -> Tensor:
    return F.pad(real, (1, 0), value=True)


def ones_in_front(real: Tensor) -> Tensor:
    return torch.cat([real.new_ones(real.shape[0], 1), real], 1)


def zeros_inverted(real: Tensor) -> Tensor:
    return ~torch.cat([real.new_zeros(real.shape[0], 1), ~real], 1)


@pytest.mark.parametrize("joined_in", [padded_in_front, ones_in_front, zeros_inverted])
def test_padding_beside_a_class_token_is_padding(joined_in: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 3, 2 * GRID[0], 2 * GRID[1])
    real = torch.arange(PATCHES) < torch.tensor([[PATCHES], [PATCHES - 3], [PATCHES - 5]])
    report = tome_fx.explain(Padded(joined_in).eval(), 1, example_inputs=(x, real))
    assert len(report.blocks) == 2
    assert not any("mask differs" in note for note in report.notes)
