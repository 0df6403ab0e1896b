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


class Beside(nn.Module):
    """Words beside the patches in one row, as ViLT has them; a word of number 0 is none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.words = nn.Linear(6, 8), nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        shown = torch.cat([torch.ones(x.shape[:2], dtype=torch.bool), words != 0], 1)[:, None, None]
        x = torch.cat([self.stem(x), self.words(words)], 1)
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            x = x + self.attend(q, k, v, shown).transpose(1, 2).flatten(2)
        return x[:, : -words.shape[1]].mean(1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, shown: Tensor) -> Tensor:
        scores = q @ k.mT * 0.5
        if self.how == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        if self.how == "filled":
            return scores.masked_fill(~shown, -1e9).softmax(-1) @ v
        return (scores + (1 - shown.to(q.dtype)) * -1e9).softmax(-1) @ v


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("how", ["fused", "filled", "added"])
@pytest.mark.parametrize("words", [2, 7])
def test_a_mask_of_words_beside_patches(how: str, words: int) -> None:
    model = Beside(how).double().eval()
    randomise(model, 0)
    x = torch.randn(3, 4, 6, dtype=torch.float64)[:, torch.arange(24) // 6]
    ids = torch.arange(1, 1 + 3 * words).remainder(10).clamp(min=1).view(3, words)
    ids[0, 1:] = 0
    fast = tome_fx.transform(model, [4, 3, 2], example_inputs=(x, ids), min_ratio=0)
    assert distance(fast(x, ids), model(x, ids)) < 1e-12
    other = ids.clone()
    other[0, 1:] = 3
    assert distance(fast(x, other), fast(x, ids)) > 1e-6


class Even(nn.Module):
    """A mask of keys that the model makes, with the same row for each query."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.stem = how, nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        shown = torch.arange(n) < 20
        x = self.stem(x)
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            if self.how == "expanded":
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown.expand(n, n))
            elif self.how == "framed":
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown.expand(1, 1, n, n))
            elif self.how == "as a bias":
                bias = torch.zeros(n, dtype=x.dtype).masked_fill(~shown, float("-inf"))
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None, None])
            elif self.how == "added":
                y = (q @ k.mT + (~shown).to(x.dtype) * -1e9).softmax(-1) @ v
            elif self.how == "added to each":
                y = (q @ k.mT + ((~shown).to(x.dtype) * -1e9).repeat(n, 1)).softmax(-1) @ v
            else:
                y = (q @ k.mT).masked_fill(~shown.repeat(n, 1), -1e9).softmax(-1) @ v
            x = x + y.transpose(1, 2).flatten(2)
        return x.mean(1)


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize(
    "how", ["expanded", "framed", "repeated", "as a bias", "added", "added to each"]
)
def test_a_mask_with_one_row_for_all_queries(how: str) -> None:
    """Of keys that are filled or left out the members count; else the two kinds merge apart."""
    model = Even(how).double().eval()
    randomise(model, 0)
    x = torch.randn(3, 4, 6, dtype=torch.float64)[:, torch.arange(24) // 6]
    fast = tome_fx.transform(model, [4, 3, 2], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 3, 2)
    assert distance(fast(x), model(x)) < 1e-12
    assert any("hides some tokens" in note for note in fast.report.notes) == (
        how in ("as a bias", "added", "added to each")
    )
