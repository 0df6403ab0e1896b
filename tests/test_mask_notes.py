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
