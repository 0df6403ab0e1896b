"""A mask of padding that comes as a grid, one truth for each patch, as patches themselves do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
C, SIDE = 8, 6

ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda mask: mask.flatten(1),
    "reshape": lambda mask: mask.reshape(mask.shape[0], -1),
    "there and back": lambda mask: mask.flatten(1).unflatten(1, (SIDE, SIDE)).flatten(1),
}


class Masked(nn.Module):
    """Padding is hidden from attention, left as it is by MLPs, and out of the mean."""

    def __init__(self, row: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.row, self.stem, self.head = row, nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C)) for _ in range(2)
        )

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        x, mask = self.stem(image).flatten(2).mT, self.row(grid)
        weight = mask[..., None].to(x.dtype)
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
            x = x + y.transpose(1, 2).flatten(2)
            x = x + mlp(x) * weight
        return self.head((x * weight).sum(1) / weight.sum(1))  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_it_is_the_same_within_a_group(row: Callable[[Tensor], Tensor]) -> None:
    model = Masked(row).double().eval()
    randomise(model, 0)
    image = torch.randn(2, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64)
    mask = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    mask[0, :, 4:], mask[1, 5:] = False, False
    fast = tome_fx.transform(model, 4, example_inputs=(image, mask))
    assert fast.schedule == (4, 4)
    assert not fast.report.unmerges
    other = image.clone()
    other[0, :, :, 8:] = 7.0
    assert distance(fast(other, mask), fast(image, mask)) < 1e-12
    tiles = image[:, :, :2, :2].repeat(1, 1, SIDE, SIDE)
    assert distance(fast(tiles, mask), model(tiles, mask)) < 1e-12
