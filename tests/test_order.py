"""Causal masks that a model makes itself: no place to merge, and nothing merged meets them."""

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
Mix = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Blocks whose attention is ``mixes``, one each; masks are its buffers or made on the way."""

    def __init__(self, *mixes: Mix) -> None:
        super().__init__()
        self.mixes, self.stem = mixes, nn.Conv2d(3, C, 2, 2)
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in mixes)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))
            for _ in mixes
        )
        self.register_buffer("seen", torch.ones(2 * N, 2 * N).tril()[None, None])
        hidden = torch.full((N, N), float("-inf")).triu(1)
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for mix, qkv, mlp in zip(self.mixes, self.qkv, self.mlp, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 2, C // 2)).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + mix(self, q, k, v).transpose(1, 2).flatten(2)
            x = x + mlp(x)
        return x.mean(1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * 0.4


def gpt(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = model.seen[:, :, :N, :N]
    return scores(q, k).masked_fill(seen == 0, float("-inf")).softmax(-1) @ v


def chosen(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    least = torch.full([], torch.finfo(q.dtype).min, dtype=q.dtype)
    return torch.where(model.seen[:, :, :N, :N].bool(), scores(q, k), least).softmax(-1) @ v


def added(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) + model.hidden).softmax(-1) @ v


def subtracted(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) - 1e9 * (1 - model.seen[:, :, :N, :N].to(q.dtype))).softmax(-1) @ v


def in_turn(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As GPT-2 had it in TensorFlow."""
    seen = model.seen[:, :, :N, :N].to(q.dtype)
    return (scores(q, k) * seen - 1e10 * (1 - seen)).softmax(-1) @ v


def without_itself(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(N, N, dtype=torch.bool).triu()
    return scores(q, k).masked_fill(hidden, -1e9).softmax(-1) @ v


def afterwards(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden behind the softmax, and weighed anew."""
    shares = scores(q, k).softmax(-1) * model.seen[:, :, :N, :N].to(q.dtype)
    return shares / shares.sum(-1, keepdim=True) @ v


def filled_afterwards(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(-1).masked_fill(model.hidden.isinf(), 0.0) @ v


def fused(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=model.hidden)


def made(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(q.shape[2])
    seen = places[:, None] >= places[None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def like(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = scores(q, k)
    return (logits + torch.full_like(logits, float("-inf")).triu(1)).softmax(-1) @ v


def backwards(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) + model.hidden.mT).softmax(-1) @ v


def windowed(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(N, N, dtype=torch.bool).tril().triu(-5)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def decayed(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Retention: no softmax, and a factor that is nothing for what follows."""
    places = torch.arange(N, dtype=q.dtype)
    share = 0.9 ** (places[:, None] - places[None, :])
    return (scores(q, k) * (share * model.seen[0, 0, :N, :N])) @ v


def by_hand(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shares = (scores(q, k) + model.hidden).exp()
    return shares / shares.sum(-1, keepdim=True) @ v


def opened(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).sigmoid().masked_fill(model.hidden.isinf(), 0.0) @ v


def free(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def local(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No token sees itself: no order."""
    own = torch.eye(N, dtype=torch.bool)
    return scores(q, k).masked_fill(own, float("-inf")).softmax(-1) @ v


def sloped(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Far tokens count less (ALiBi): no order."""
    places = torch.arange(N, dtype=q.dtype)
    far = (places[:, None] - places[None, :]).abs()
    return (scores(q, k) - 2000 * far).softmax(-1) @ v


def near(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by factors, without a softmax."""
    places = torch.arange(N, dtype=q.dtype)
    far = (places[:, None] - places[None, :]).abs()
    return (scores(q, k).sigmoid() * 0.9**far) @ v


def halved(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What follows counts half: it is not hidden."""
    shares = scores(q, k).softmax(-1)
    return torch.where(model.seen[:, :, :N, :N].bool(), shares, shares * 0.5) @ v


def evened(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).softmax(-1).masked_fill(model.hidden.isinf(), 0.1) @ v


def both_ways(model: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shares, seen = scores(q, k).softmax(-1), model.seen[:, :, :N, :N].to(q.dtype)
    return (shares * seen) @ v + (shares * seen.mT * 0.5) @ v


def model_of(*mixes: Mix) -> nn.Module:
    model = Model(*mixes).eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    randomise(model)
    for name, value in buffers.items():
        model.get_buffer(name).copy_(value)
    return model.double()


CAUSAL = (gpt, chosen, added, subtracted, in_turn, without_itself, afterwards, filled_afterwards,
          fused, made, like, backwards, windowed, decayed, by_hand, opened)  # fmt: skip
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.few(2)
@pytest.mark.parametrize("mix", CAUSAL)
def test_a_causal_mask_is_refused_however_it_is_made(mix: Mix) -> None:
    with pytest.raises(tome_fx.NoAttentionFoundError, match="it is causal"):
        tome_fx.transform(model_of(mix, mix), 3, example_inputs=X)


@pytest.mark.few(3)
@pytest.mark.parametrize("mix", [local, sloped, near, halved, evened, both_ways])
def test_a_mask_without_an_order_is_none(mix: Mix) -> None:
    fast = tome_fx.transform(model_of(mix, mix), 3, example_inputs=X, min_ratio=0)
    assert fast.schedule == (3, 3)


@pytest.mark.parametrize("mix", [gpt, made])
def test_tokens_merge_behind_the_last_order(mix: Mix) -> None:
    """In front of it a merged token would have no place; behind it duplicates merge exactly."""
    model = model_of(free, mix, free, free)
    fast = tome_fx.transform(model, [2, 2], example_inputs=X, min_ratio=0)
    assert fast.schedule == (2, 2)
    first, second = fast.report.near_misses[:2]
    assert {first.reason.split(":")[0], second.reason.split(":")[0]} == {
        "it is causal",
        "a causal attention follows",
    }
    places = tome_fx.transform(model, 0, example_inputs=X)
    assert distance(run(places, X), run(model, X)) == 0
