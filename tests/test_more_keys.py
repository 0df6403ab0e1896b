"""More keys than tokens: sinks, memory and padded keys beside them, chunks with their context."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tome_fx
from tests.laws.common import TINY, distance

pytestmark = TINY
WIDTH, TOKENS, CHUNK, CONTEXT = 16, 24, 4, 4
# Queries, keys and values [B, 2, N, 8], and which tokens are hidden, to what attention finds.
Mix = Callable[["Model", Tensor, Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.stem = mix, nn.Linear(12, WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.sink = nn.Parameter(torch.randn(2, 1, 1))
        self.memory = nn.Parameter(torch.randn(2, 2, 3, 8))

    def forward(self, patches: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.stem(patches)
        hidden = (
            torch.ones(TOKENS, TOKENS).triu(1).bool() if hidden is None else hidden[:, None, None]
        )
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            y = self.mix(self, q, k, v, hidden)
            x = x + out(y.transpose(1, 2).flatten(2)) * 3.0
        return x


def remembered(model: Model, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    places = zip(model.memory, (k, v), strict=True)
    return tuple(torch.cat([own.expand(len(k), -1, -1, -1), t], 2) for own, t in places)


def with_sink(model: Model, logits: Tensor, first: bool = False) -> Tensor:
    sink = model.sink.expand(len(logits), 2, TOKENS, 1)
    return torch.cat([sink, logits] if first else [logits, sink], -1)


def sink(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    logits = (q @ k.mT).masked_fill(hidden, -1e9)
    return with_sink(model, logits).softmax(-1)[..., :-1] @ v


def sink_first(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    logits = (q @ k.mT) + hidden.to(q.dtype) * -1e9
    return with_sink(model, logits, first=True).softmax(-1)[..., 1:] @ v


def masked_with_sink(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    logits = with_sink(model, q @ k.mT)
    return logits.masked_fill(F.pad(hidden, (0, 1)), -1e9).softmax(-1)[..., :-1] @ v


def memory(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    k, v = remembered(model, k, v)
    return F.scaled_dot_product_attention(q, k, v, ~F.pad(hidden, (3, 0)))


def joined_memory(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    k, v = remembered(model, k, v)
    none = torch.zeros(*hidden.shape[:-1], 3, dtype=torch.bool)
    return (q @ k.mT).masked_fill(torch.cat([none, hidden], -1), -1e9).softmax(-1) @ v


def padded_keys(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    k, v = (F.pad(t, (0, 0, 0, 8)) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, ~F.pad(hidden, (0, 8), value=True))


MIXES = [sink, sink_first, masked_with_sink, memory, joined_memory, padded_keys]


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("mix", MIXES)
def test_padding_beside_other_keys_is_held_apart(mix: Mix) -> None:
    """What padding holds is changed; real tokens must not move."""
    model = Model(mix).double().eval()
    x, hidden = torch.randn(2, TOKENS, 12).double(), torch.zeros(2, TOKENS, dtype=torch.bool)
    hidden[1, 14:] = True
    other = torch.where(hidden[..., None], torch.randn_like(x), x)
    fast = tome_fx.transform(model, 4, example_inputs=(x, hidden), min_ratio=0)
    assert fast.schedule == (4, 4, 4)
    assert distance(model(other, hidden)[~hidden], model(x, hidden)[~hidden]) < 1e-12
    assert distance(fast(other, hidden)[~hidden], fast(x, hidden)[~hidden]) < 1e-12
    colour = x[:, :1].expand_as(x).contiguous()
    assert distance(fast(colour, hidden)[~hidden], model(colour, hidden)[~hidden]) < 1e-9


def chunks(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Each chunk of queries looks at its own keys up to itself, and at those before it."""

    def around(t: Tensor) -> Tensor:
        wide = F.pad(t, (0, 0, CONTEXT, 0)).unfold(2, CHUNK + CONTEXT, CHUNK)
        return wide.permute(0, 1, 2, 4, 3)

    ends = torch.arange(CHUNK)[:, None] + CONTEXT
    keys = torch.arange(CHUNK + CONTEXT)
    seen = (keys <= ends) & (keys > ends - CONTEXT - 1)
    real = around(torch.ones(1, 1, TOKENS, 1))[..., 0].bool()[..., None, :]
    logits = q.unflatten(2, (-1, CHUNK)) @ around(k).mT
    return (logits.masked_fill(~(seen & real), -1e9).softmax(-1) @ around(v)).flatten(2, 3)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("mix", [*MIXES, chunks])
def test_an_order_beside_other_keys_is_no_place_to_merge(mix: Mix) -> None:
    model, x = Model(mix).double().eval(), torch.randn(2, TOKENS, 12).double()
    later = x.clone()
    later[:, 12:] = torch.randn(2, 12, 12)
    assert distance(model(later)[:, :12], model(x)[:, :12]) < 1e-12
    with pytest.raises(tome_fx.NoAttentionFoundError, match="causal"):
        tome_fx.transform(model, 4, example_inputs=x, min_ratio=0)


def band(model: Model, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Some keys beside the tokens, and all tokens seen but the nearest: no order."""
    k, v = remembered(model, k, v)
    far = (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs() > 2
    return F.scaled_dot_product_attention(q, k, v, F.pad(far, (3, 0), value=True))


def test_what_is_no_order_merges() -> None:
    model, x = Model(band).double().eval(), torch.randn(2, TOKENS, 12).double()
    assert tome_fx.transform(model, 4, example_inputs=x, min_ratio=0).schedule == (4, 4, 4)
