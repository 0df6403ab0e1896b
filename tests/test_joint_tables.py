"""Tables over a row that holds several rows of merged tokens: each token keeps its own entry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance
from tests.test_joint import HEADS, TEXT, Both, C, Mixed, inputs

pytestmark = TINY
IMAGE = 16


class Turned(Mixed):
    """Queries and keys turned by a table, or logits under a bias, with a row for each token."""

    def __init__(self, table: Tensor, bias: bool) -> None:
        super().__init__()
        self.bias = bias
        self.register_buffer("table", over(table, bias))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.bias:
            y = F.scaled_dot_product_attention(q, k, v, self.table[..., 0])
        else:
            y = F.scaled_dot_product_attention(q * self.table, k * self.table, v)
        return y.transpose(1, 2).flatten(2)


def over(table: Tensor, bias: bool) -> Tensor:
    """A row for each token, or for a bias one for each pair."""
    return table[:, None] - table[None] if bias else table.clone()


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize("r", [[3, 3, 0, 0], [3, 0, 3, 0], [2, 4, 4, 1]])
@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_each_row_takes_its_own_part_of_a_table(bias: bool, text_first: bool, r: list[int]) -> None:
    model = Both(doubled=False, written=False, text_first=text_first, token=False)
    sizes = (TEXT, IMAGE) if text_first else (IMAGE, TEXT)
    rows = torch.randn(2, C // HEADS, generator=torch.Generator().manual_seed(1))
    table = rows.repeat_interleave(torch.tensor(sizes), dim=0)
    model.blocks = nn.ModuleList(Turned(table, bias) for _ in range(2))
    randomise(model, 2)
    for block in model.blocks:
        block.table.copy_(over(table, bias))
    model = model.double().eval()
    image, text = inputs()
    fast = tome_fx.transform(model, r, example_inputs=(image, text))
    assert fast.schedule == tuple(r)
    tiles, words = image[:, :, :2, :2].repeat(1, 1, 4, 4), text[:, :1].expand_as(text)
    assert distance(fast(tiles, words), model(tiles, words)) < 1e-12
    assert distance(fast(image, text), model(image, text)) > 1e-6


class Within(Mixed):
    """Queries and keys of what stands behind the first row are written anew, in place."""

    def __init__(self, first: int, table: Tensor) -> None:
        super().__init__()
        self.first = first
        self.register_buffer("table", table.clone())

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.turn(q.clone()), self.turn(k.clone())
        return super().mix(q, k, v)

    def turn(self, x: Tensor) -> Tensor:
        x[:, :, self.first :] = torch.cat(
            [x[:, :, self.first :, 2:] * self.table, x[:, :, self.first :, :2]], dim=-1
        )
        return x


@torch.no_grad()
@pytest.mark.parametrize("r", [[3, 3, 0, 0], [3, 0, 3, 0], [2, 4, 4, 1]])
def test_a_row_may_be_written_behind_one_that_merged(r: list[int]) -> None:
    model = Both(doubled=False, written=False, text_first=True, token=False)
    table = torch.randn(1, 2).expand(IMAGE, 2)
    model.blocks = nn.ModuleList(Within(TEXT, table) for _ in range(2))
    randomise(model, 2)
    for block in model.blocks:
        block.table.copy_(table)
    model = model.double().eval()
    image, text = inputs()
    fast = tome_fx.transform(model, r, example_inputs=(image, text))
    assert fast.schedule == tuple(r)
    assert not [u for u in fast.report.unmerges if u.op != "output"]
    tiles, words = image[:, :, :2, :2].repeat(1, 1, 4, 4), text[:, :1].expand_as(text)
    assert distance(fast(tiles, words), model(tiles, words)) < 1e-12
    assert distance(fast(image, text), model(image, text)) > 1e-6
