"""Padding that differs between the views of an image, and padding beside gates and biases.

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


@pytest.mark.few(3)
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
    model = Views(True, True, True).double().eval()
    fast = tome_fx.transform(model, [5, 0, 0], example_inputs=(x, mask), min_ratio=0)
    (slots, *_) = fast.token_map(x, mask)
    for one, other in ((0, 1), (2, 3), (4, 5), (6, 7), (10, 11)):
        assert slots[0, one] == slots[0, other]
    assert slots[0, 8] != slots[0, 9]  # the one is seen in both views
    assert torch.allclose(fast(x, mask)[mask], model(x, mask)[mask], atol=1e-12)


def fill_and_gate(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~mask[:, None, None], -1e9).relu() @ (v * mask[:, None, :, None])


def sigmoid_and_bias(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT + (~mask[:, None, None]).to(q.dtype) * -1e9 + bias).sigmoid() @ v / 16


def query_gate(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    logits = (q @ k.mT / 4).masked_fill(~mask[:, None, None], -torch.inf)
    return (logits.softmax(-1) * mask[:, None, :, None]) @ v


def scaled_and_bias(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    logits = (q @ k.mT + (~mask[:, None, None]).to(q.dtype) * -1e9) / 1.5 + bias
    return logits.softmax(-1) @ v


def bias_alone(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT / 4 + bias).softmax(-1) @ v


class Beside(nn.Module):
    """Padding with something else that tells tokens apart: a gate, or a bias for each head."""

    def __init__(self, attention: Callable[..., Tensor]) -> None:
        super().__init__()
        self.blocks, self.attention = blocks(), attention

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        for qkv, out in self.blocks:
            q, k, v = qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            y = self.attention(q, k, v, mask, bias[:, :, None])
            x = x + out(y.transpose(1, 2).flatten(2))
        return x


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "attention", [fill_and_gate, sigmoid_and_bias, query_gate, scaled_and_bias]
)
@torch.no_grad()
def test_what_stands_beside_it_does_not_hide_padding(attention: Callable[..., Tensor]) -> None:
    x, mask = random(3, TOKENS, WIDTH), torch.ones(3, TOKENS, dtype=torch.bool)
    mask[1, 8:] = False
    bias = random(3, 2, TOKENS)
    model = Beside(attention).double().eval()
    fast = tome_fx.transform(model, 2, example_inputs=(x, mask, bias), min_ratio=0)
    noise = torch.where(mask[..., None], x, 3 * x.flip(0) + 1)
    gap = fast(x, mask, bias) - fast(noise, mask, bias)
    assert sum(fast.schedule) > 3
    assert gap[mask].abs().max() < 1e-12


@torch.no_grad()
def test_a_bias_of_heads_is_no_mask() -> None:
    """Unmerged tokens keep their own: exact on duplicates under ``never``, whatever it says."""
    x = random(2, TOKENS // 2, WIDTH).repeat_interleave(2, dim=1)
    mask, bias = torch.ones(2, TOKENS, dtype=torch.bool), random(2, 2, TOKENS // 2)
    bias = bias.repeat_interleave(2, dim=2)
    model = Beside(bias_alone).double().eval()
    fast = tome_fx.transform(model, [6, 0, 0], example_inputs=(x, mask, bias), min_ratio=0)
    assert fast.schedule == (6, 0, 0)
    assert torch.allclose(fast(x, mask, bias), model(x, mask, bias), atol=1e-12)
