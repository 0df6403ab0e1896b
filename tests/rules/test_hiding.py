"""Masks that hide tokens from tokens: each from itself is exact, else a group looks as one does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import (
    TINY,
    D,
    N,
    Projected,
    assert_equal,
    heads,
    host,
    images,
    joined,
    unmerged,
)

pytestmark = TINY
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LOWEST = torch.finfo(torch.float64).min


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * D**-0.5


def fused(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=~own)


def filled(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As locality self-attention has it: the mask is made in forward."""
    logits = scores(q, k)
    mask = torch.eye(logits.shape[-1], device=logits.device, dtype=torch.bool)
    return logits.masked_fill(mask, -torch.finfo(logits.dtype).max).softmax(-1) @ v


def shown(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.where(~own, scores(q, k), float("-inf")).softmax(-1) @ v


def chosen(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lowest = torch.full((), LOWEST, dtype=q.dtype)
    return torch.where(own, lowest, scores(q, k)).softmax(-1) @ v


def biased_after(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bias behind the mask, which hides nothing."""
    return (scores(q, k).masked_fill(own, float("-inf")) + 0.3).softmax(-1) @ v


def for_each_head(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One of the heads looks at itself."""
    heads_ = torch.tensor([True, False])[:, None, None] & own
    return scores(q, k).masked_fill(heads_, float("-inf")).softmax(-1) @ v


def rectified(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).relu() * ~own / N @ v


def weighed(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (1 - own.to(q.dtype)) * scores(q, k).sigmoid() / N @ v


EXACT = [fused, filled, shown, chosen, biased_after, for_each_head, rectified, weighed]


def block(attend: Attend, own: Tensor | None = None) -> nn.Module:
    own = torch.eye(N, dtype=torch.bool) if own is None else own

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return joined(attend(own, heads(q), heads(k), heads(v)))

    return Projected(mix)


def notes(op: Any) -> str:
    return str(tome_fx.explain(host(op), 1, example_inputs=images()))


@pytest.mark.few(2)
@pytest.mark.parametrize("attend", EXACT)
def test_a_token_hidden_from_itself_alone(attend: Attend) -> None:
    assert unmerged(block(attend), sites=3) == set()
    assert "hides some tokens" not in notes(block(attend))


def scaled_after(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the mask adds for a group would be scaled too."""
    return (scores(q, k).masked_fill(own, LOWEST) * 0.5).softmax(-1) @ v


def added(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    table = torch.zeros(own.shape, dtype=q.dtype).masked_fill(own, float("-inf"))
    return (scores(q, k) + table).softmax(-1) @ v


def twice(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    filled = scores(q, k).masked_fill(own, LOWEST)
    return filled.masked_fill(own, LOWEST).softmax(-1) @ v


def both(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    one, other = scores(q, k).masked_fill(own, -1e9), scores(k, q).masked_fill(own, -1e9)
    return (one + other).softmax(-1) @ v


def multiplied(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (
        torch.add(v.sum(-1)[:, :, None], scores(q, k).masked_fill(own, -1e9), alpha=2).softmax(-1)
        @ v
    )


def factor(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) * ~own).softmax(-1) @ v


def squared(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores(q, k) * ~own).relu().square() / N @ v


def opened(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).masked_fill(own, LOWEST).sigmoid() / N @ v


def by_hand(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shares = scores(q, k).masked_fill(own, LOWEST).exp()
    return shares / shares.sum(-1, keepdim=True) @ v


def for_every_image(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, (~own).expand(len(q), 1, N, N))


NOTED = [scaled_after, added, twice, both, multiplied, factor, squared, opened, by_hand,
         for_every_image]  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("attend", NOTED)
def test_what_is_not_counted_is_noted(attend: Attend) -> None:
    assert "hides some tokens from some others" in notes(block(attend))


def test_members_that_see_other_tokens_are_noted() -> None:
    far = (torch.arange(N)[:, None] - torch.arange(N)).abs() > 5
    for attend in (fused, filled_with, rectified):
        assert "hides some tokens from some others" in notes(block(attend, far))
    none = torch.zeros(N, N, dtype=torch.bool)
    assert "hides some tokens" not in notes(block(filled_with, none))


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("attend", [fused, added])
def test_tokens_of_one_window_merge_first(attend: Attend) -> None:
    """Windows by a mask: the same picture sees other ones in another window."""
    labels = (0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2, 2)
    window = torch.tensor([0] * 6 + [1] * 6)
    hidden = torch.zeros(N, N, dtype=torch.bool)
    hidden[1:, 1:] = window[:, None] != window
    model, x = host(block(attend, hidden)), images(labels)
    for r in ([2, 1, 1], [3, 2, 0]):
        fast = tome_fx.transform(model, r=r, example_inputs=(x,))
        assert fast.schedule == tuple(r)
        assert_equal(fast(x), model(x), 1e-9)
        assert_equal(fast(x[1:2]), model(x[1:2]), 1e-9)


def filled_with(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scores(q, k).masked_fill(own, float("-inf")).softmax(-1) @ v


def test_some_keys_are_hidden_from_all() -> None:
    """A row of a mask: of each group those members count that are seen."""
    row = torch.zeros(N, dtype=torch.bool)
    row[[2, 5, 6]] = True

    def attend(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scores(q, k).masked_fill(row, float("-inf")).softmax(-1) @ v

    assert unmerged(block(attend), sites=3) == set()


@torch.no_grad()
def test_a_mask_of_a_later_block_may_have_the_shape_of_its_tokens() -> None:
    """It cannot be made where an earlier block merges."""

    def attend(own: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.ones_like(k[0, 0, :, 0]).cumsum(0)
        return filled_with((place[:, None] - place).abs() > 5, q, k, v)

    x = images()
    fast = tome_fx.transform(host(block(attend)), r=[2, 1, 1], example_inputs=(x,))
    assert torch.isfinite(fast(x)[0]).all()
    assert "hides some tokens" in str(fast.report)


def test_a_mask_that_is_given_may_hold_anything_later() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Projected()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k, v = (heads(f(x)) for f in (self.own.q, self.own.k, self.own.v))
            return x + joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    everything = torch.ones(N, N, dtype=torch.bool)
    example = (images(), everything)
    report = tome_fx.explain(host(Given()), 1, example_inputs=example)
    assert "hides some tokens" in str(report)


@torch.no_grad()
def test_without_proportional_attention_a_group_is_seen_or_not() -> None:
    x = images()
    for attend in (fused, filled):
        fast = tome_fx.transform(
            host(block(attend)), r=[4, 1, 1], example_inputs=(x,), prop_attn=False
        )
        assert torch.isfinite(fast(x)[0]).all()
        code = str(fast.graph)
        assert ("hide_members" in code) == (attend is filled)
        assert ("seen_bias" in code) == (attend is fused)
        assert "False" in code


def test_gradients_are_finite() -> None:
    x = images()
    for attend in (fused, filled):
        fast = tome_fx.transform(host(block(attend)), r=[4, 1, 1], example_inputs=(x,))
        fast(x)[0].square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in fast.parameters())
