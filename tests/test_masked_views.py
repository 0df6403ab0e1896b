"""Padding that differs between the views of an image, and padding by factors: it stays apart.

What padding holds is changed; what real tokens become must not move. Each model attends to what its
mask shows alone, which is asserted too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tome_fx
from tests.rules.common import TINY

pytestmark = TINY

WIDTH, TOKENS = 16, 12


def blocks(depth: int = 3) -> nn.ModuleList:
    torch.manual_seed(0)
    parts = (nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)])
             for _ in range(depth))  # fmt: skip
    return nn.ModuleList(parts)


class Views(nn.Module):
    """Attention within each view of ``[B, V, N, C]``, or to that of its neighbour."""

    def __init__(self, folded: bool, written: bool, crossing: bool) -> None:
        super().__init__()
        self.blocks = blocks()
        self.folded, self.written, self.crossing = folded, written, crossing

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = x.shape
        if self.folded:
            x, mask = x.flatten(0, 1), mask.flatten(0, 1)
        for layer, (qkv, out) in enumerate(self.blocks):
            q, k, v = qkv(x).unsqueeze(-3).chunk(3, -1)
            seen = mask
            if self.crossing and layer % 2:
                k, v, seen = (self.other(t, shape[1]) for t in (k, v, seen))
            hidden = (1 - seen.to(x.dtype))[..., None, None, :] * -1e9
            if self.written:
                y = (q @ k.mT / 4 + hidden).softmax(-1) @ v
            else:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
            x = x + out(y.squeeze(-3))
        return x.reshape(shape)

    def other(self, value: Tensor, views: int) -> Tensor:
        if not self.folded:
            return value.flip(1)
        return value.unflatten(0, (-1, views)).flip(1).flatten(0, 1)


def moved(model: nn.Module, x: Tensor, mask: Tensor) -> float:
    """How far real tokens move if padding holds something else."""
    noise = 3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).double()
    real = mask.bool()
    gap = model(x, mask) - model(torch.where(real[..., None], x, noise), mask)
    return float(gap[real].abs().max())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("views", [1, 2, 3])
@torch.no_grad()
def test_padding_of_some_views(views: int, folded: bool, written: bool, crossing: bool) -> None:
    x, mask = random(3, views, TOKENS, WIDTH), torch.ones(3, views, TOKENS).long()
    mask[0, -1, 9:] = 0
    mask[1, 0, 8:] = 0
    model = Views(folded, written, crossing).double().eval()
    fast = tome_fx.transform(model, 2, example_inputs=(x, mask), min_ratio=0)
    assert fast.schedule == (2, 2, 2)
    assert moved(model, x, mask) == 0.0
    assert moved(fast, x, mask) < 1e-12
    for image in range(3):  # images are told apart, and views by their own places
        alone = fast(x[image, None], mask[image, None])
        assert torch.allclose(alone[0], fast(x, mask)[image], atol=1e-12)


@torch.no_grad()
def test_tokens_of_some_views_merge_with_their_like() -> None:
    """Neighbours are alike in each view, so that each pair would merge but for the padding."""
    x = random(2, 2, TOKENS // 2, WIDTH).repeat_interleave(2, dim=2)
    mask = torch.ones(2, 2, TOKENS).bool()
    mask[0, 1, 9:] = False
    model = Views(True, True, False).double().eval()
    fast = tome_fx.transform(model, [5, 0, 0], example_inputs=(x, mask), min_ratio=0)
    (slots, *_) = fast.token_map(x, mask)
    for one, other in ((0, 1), (2, 3), (4, 5), (6, 7), (10, 11)):
        assert slots[0, one] == slots[0, other]
    assert slots[0, 8] != slots[0, 9]  # the one is seen in both views
    assert torch.allclose(fast(x, mask)[mask], model(x, mask)[mask], atol=1e-12)


def linear(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, seen = F.elu(q) + 1, F.elu(k) + 1, mask.to(q.dtype)[..., None]
    k, v = k * seen, v * seen
    return (q @ (k.mT @ v)) / (q @ k.sum(1, keepdim=True).mT + 1e-6)


def values_alone(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return q.softmax(-1) @ (k.relu().mT @ v.masked_fill(~mask[..., None], 0)) / 16


def on_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT).relu() @ (v * mask.to(v.dtype)[..., None]) / 16


def filled_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT).relu() @ v.masked_fill(~mask[..., None], 0) / 16


def chosen_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT).relu() @ torch.where(mask[..., None], v, torch.zeros_like(v)) / 16


def weights_in_numbers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return ((q @ k.mT).relu() * mask.to(q.dtype)[:, None]) @ v / 16


def behind_a_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = (q @ k.mT / 4).softmax(-1) * mask.to(q.dtype)[:, None]
    return (weights / weights.sum(-1, keepdim=True)) @ v


def filled_behind_a_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = (q @ k.mT / 4).softmax(-1).masked_fill(~mask[:, None], 0)
    return (weights / weights.sum(-1, keepdim=True)) @ v


class Factors(nn.Module):
    def __init__(self, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.blocks, self.attention = blocks(), attention

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for qkv, out in self.blocks:
            x = x + out(self.attention(*qkv(x).chunk(3, -1), mask))
        return x


@pytest.mark.parametrize(
    "attention",
    [linear, values_alone, on_values, filled_values, chosen_values, weights_in_numbers,
     behind_a_softmax, filled_behind_a_softmax],
)  # fmt: skip
@pytest.mark.parametrize("r", [2, [5, 0, 0]])
@torch.no_grad()
def test_padding_by_factors(attention: Callable[..., Tensor], r: int | list[int]) -> None:
    x, mask = random(3, TOKENS, WIDTH), torch.ones(3, TOKENS, dtype=torch.bool)
    mask[1, 8:] = False
    model = Factors(attention).double().eval()
    fast = tome_fx.transform(model, r, example_inputs=(x, mask), min_ratio=0)
    assert sum(fast.schedule) >= 5
    assert moved(model, x, mask) < 1e-14
    assert moved(fast, x, mask) < 1e-12
