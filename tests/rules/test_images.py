"""The axis of the images: copies of it, pieces of it, other axes around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import (
    PAIRS,
    TINY,
    B,
    N,
    Projected,
    assert_equal,
    host,
    images,
    plain_mix,
    unmerged,
)

pytestmark = TINY


def twice(x: Tensor) -> Tensor:
    """Two views of every image through one pass, as siamese models do."""
    first, second = torch.cat([x, x.flip(-1)], dim=0).sin().chunk(2, dim=0)
    return first + second


COPIES = {
    "two views": twice,
    "three views": lambda x: sum(torch.cat([x, 2 * x, 3 * x]).sin().split(x.shape[0])),
    "repeated": lambda x: x.repeat(2, 1, 1).sin().unflatten(0, (2, -1)).mean(0),
    "repeated and cut": lambda x: x.repeat(2, 1, 1).sin()[: x.shape[0]],
    "each twice": lambda x: x.repeat_interleave(2, 0).sin().unflatten(0, (-1, 2)).mean(1),
    "folded with tokens": lambda x: x.flatten(0, 1).softmax(-1).unflatten(0, (-1, N)),
    "images last": lambda x: x.permute(1, 2, 0).sin().permute(2, 0, 1),
}


def test_copies_of_the_images_stay_merged() -> None:
    assert unmerged(COPIES, how="beside") == set()


ACROSS = {
    "first": lambda x: x[:1],
    "by number": lambda x: x[0],
    "last, counted": lambda x: x.select(0, -1) + x.narrow(0, 0, 1),
    "mean": lambda x: x.mean(0),
    "turned round": lambda x: x.flip(0),
    "rolled": lambda x: x.roll(1, 0),
    "up to each": lambda x: x.cumsum(0),
    "shares": lambda x: x.softmax(0),
    "attention": lambda x: plain_mix(*(3 * [x.transpose(0, 1)])).transpose(0, 1),
    "similarity": lambda x: x.transpose(0, 1) @ x.permute(1, 2, 0),
    "tokens of all": lambda x: x.reshape(-1, x.shape[-1]).mean(0),
    "between two": lambda x: x[1:] - x[:-1],
}


def test_what_looks_across_images_is_exact() -> None:
    """Images merge in different ways here, so that a mix of their plans would show."""
    layouts = (PAIRS, (*PAIRS[1:], PAIRS[0]), (0,) * 12)
    x = torch.cat([images(layout, seed=i, batch=1) for i, layout in enumerate(layouts)])
    model = host(ACROSS, how="aside")
    fast = tome_fx.transform(model, r=[6, 0], example_inputs=(x,))
    assert fast.schedule == (6, 0)
    assert_equal(fast(x), model(x), 1e-9)


def test_images_turned_round_meet_the_stream() -> None:
    assert unmerged(lambda x: x + 0.0 * x.flip(0)) == {"flip"}


def test_attention_over_two_views_at_once() -> None:
    def views(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (torch.cat([t, t.sin()]) for t in (q, k, v))
        return plain_mix(q, k, v).chunk(2)[1]

    assert unmerged(Projected(views), sites=3) == set()


class Shared(nn.Module):
    """One block used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Projected(plain_mix)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


def test_one_module_in_two_places() -> None:
    assert unmerged(Shared(), sites=4) == set()
    model = host(Shared())
    before = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    fast = tome_fx.transform(model, r=[5, 1], example_inputs=(images(),))
    after = {name: id(p) for name, p in fast.named_parameters(remove_duplicate=False)}
    assert {name: after[name] for name in before} == before
    assert all(type(p.data) is torch.Tensor for p in fast.parameters())


def test_heads_outside_the_images_do_not_mix_images() -> None:
    """Exchanging two images exchanges their results, whatever is folded around them."""

    def outside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (torch.cat(t.split(4, 2)) for t in (q, k, v))
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        return torch.cat((weights @ v).chunk(2), 2)

    model, x = host(Projected(outside)), torch.randn(B, 3, 6, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, r=[4, 2, 1], example_inputs=(x,))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(fast(x[order])[0], fast(x)[0][order], rtol=1e-10, atol=1e-12)


def test_views_that_meet_place_by_place_are_refused_and_said_so() -> None:
    """One match for both would let one view change the other, and with two they would not meet."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 2, 2)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(torch.cat([x, x.flip(3)])).flatten(2).transpose(1, 2)
            first, second = self.block(x).chunk(2)
            return self.block(torch.cat([first + second, second])).mean(1)

    with pytest.raises(tome_fx.NoAttentionFoundError, match="several views of an image"):
        tome_fx.transform(Views().double().eval(), 2, example_inputs=images())
