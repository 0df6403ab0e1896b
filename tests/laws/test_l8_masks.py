"""L8 where a model finds its padding by itself, or one of several attentions hides it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY


class OwnMask(nn.Module):
    """Rows of zeros are padding, which the model finds by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.abs().sum(-1) != 0)[:, None, None]
        x = self.stem(x)
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + found.transpose(1, 2).flatten(2)
        return x


@torch.no_grad()
@pytest.mark.parametrize("remerge", ["mean", "never"])
def test_a_mask_of_the_tokens_themselves_goes_with_them(remerge: Any) -> None:
    model = OwnMask().double().eval()
    randomise(model, 0)
    x = torch.randn(2, 24, 6, dtype=torch.float64)
    x[0, 15:] = 0
    fast = tome_fx.transform(model, [2, 2, 2], example_inputs=x, min_ratio=0, remerge=remerge)
    assert [u.op for u in fast.report.unmerges] == ["output"]
    short = x[:1, :15]
    single = tome_fx.transform(model, [2, 2, 2], example_inputs=short, min_ratio=0)
    assert distance(fast(x)[:1, :15], single(short)) < 1e-9
    assert distance(fast(x), model(x)) > 1e-6


class Parallel(nn.Module):
    """Two attentions beside each other, one of which hides padding; windows as a mask behind."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.stem = first, nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(5))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        place = torch.arange(x.shape[1]) // 12
        masks: list[Tensor | None] = [valid[:, None], None]
        masks = masks if self.first else masks[::-1]
        x = self.stem(x)

        def attend(layer: nn.Module, mask: Tensor | None) -> Tensor:
            q, k, v = (part[:, None] for part in layer(x).chunk(3, -1))
            shown = None if mask is None else mask[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=shown)[:, 0]

        for one, other in ((0, 1), (2, 3)):
            x = x + attend(self.layers[one], masks[0]) + attend(self.layers[other], masks[1])
        return x + attend(self.layers[4], (place[:, None] == place)[None])


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False])
def test_padding_is_held_apart_whichever_attention_hides_it(first: bool) -> None:
    model = Parallel(first).double().eval()
    randomise(model, 0)
    x = torch.randn(2, 24, 6, dtype=torch.float64)
    valid = torch.arange(24) < torch.tensor([[13], [24]])
    fast = tome_fx.transform(model, [4, 4, 0], example_inputs=(x, valid), min_ratio=0)
    for slots in fast.token_map(x, valid)[:2, 0]:
        assert not set(slots[:13].tolist()) & set(slots[13:].tolist())
