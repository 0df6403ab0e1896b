"""Images that nothing but their channels or a sum tells apart, and keys of an earlier layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_frames import Blocks, Clip, at, clips
from tests.test_views import Attention, C, ready

pytestmark = TINY
HOT = torch.eye(3, dtype=torch.float64)


def met(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """One merges by itself and looks at the other, then both ways."""
    first = b[1](at(b, 0, first), second)
    second = b[2](second, first)
    return torch.cat([b[3](first, second), second], -1)


def in_turn(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """Neither has merged by itself before it looks at the other."""
    for i in range(2):
        first, second = b[i](first, second), b[i + 2](second, first)
    return torch.cat([first, second], -1)


def shared(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """Two layers ask the same keys."""
    keys = b[4].k(second)
    for i in range(2):
        first = at(b, i, first)
        weights = torch.einsum("bnc,bmc->bnm", b[i + 2].q(first), keys).softmax(-1)
        first = first + torch.einsum("bnm,bmc->bnc", weights, keys)
    return first


def found(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """What an attention finds, added to nothing."""
    return F.scaled_dot_product_attention(at(b, 0, first), second, second)


def volume(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """Each token against each, without an attention."""
    return at(b, 0, first) @ second.mT


def pooled(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """What the other is on average is not one of its tokens."""
    first = at(b, 0, first)
    return b[1](first, second * first.mean(1, keepdim=True))  # type: ignore[no-any-return]


def skipped(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """The residual is projected, and both come back to what they came from."""
    asking = at(b, 0, first)
    looked = b[1].v(asking) + F.scaled_dot_product_attention(asking, second, second)
    return torch.cat([looked, first, second], -1)


def written(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """Queries and keys in one call of einsum, then what is found is added."""
    first = at(b, 0, first)
    weights = torch.einsum("bnc,bmc->bnm", first, second).softmax(-1)
    return at(b, 1, first + torch.einsum("bnm,bmc->bnc", weights, second))


def fused(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    first = at(b, 0, first)
    return at(b, 1, first + F.scaled_dot_product_attention(first, second, second))


def shaped(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """The other merged, but nothing is read of its tokens."""
    first = at(b, 0, first)
    return at(b, 1, second.type_as(first) + second.reshape_as(first).view_as(first))


def filled(b: Blocks, first: Tensor, second: Tensor) -> Tensor:
    """What is the same everywhere goes wherever it is needed."""
    first = at(b, 0, first)
    ones, zeros = torch.full_like(first, 0.5), torch.zeros_like(first[..., :1])
    return torch.cat([at(b, 1, second * ones + zeros), at(b, 2, first)], -1)


PICKED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "sum over a mask": lambda x: tuple((x * m.view(1, 3, 1, 1)).sum(1) for m in HOT[:2]),
    "einsum": lambda x: tuple(torch.einsum("btnc,t->bnc", x, m) for m in HOT[:2]),
    "product": lambda x: (x.permute(0, 2, 3, 1) @ HOT).unbind(-1)[:2],
    "channels": lambda x: x.transpose(1, 2).flatten(2).split(C, -1)[:2],
}
THEN: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (met, in_turn, shared, found, volume, pooled, skipped, written, fused, shaped, filled)
}


CASES = [*((name, "met", "mean") for name in PICKED),
         ("channels", "in_turn", "mean"), ("channels", "met", "never"),
         ("channels", "found", "never"),
         *(("sum over a mask", then, "mean") for then in THEN if then != "met")]  # fmt: skip


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize(("picked", "then", "remerge"), CASES)
def test_each_image_is_exact(picked: str, then: str, remerge: Any) -> None:
    model = ready(Clip(lambda b, x: THEN[then](b, *PICKED[picked](x))))
    x, equal = clips()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0, remerge=remerge)
    assert set(fast.schedule) == {3}
    assert distance(fast(equal), model(equal)) < 1e-9
    assert distance(fast(x[:1]), fast(x)[:1]) < 1e-9


class Sequence(nn.Module):
    """Blocks of tokens of one image; ``keys`` says what the last one's keys are made of."""

    def __init__(self, keys: str) -> None:
        super().__init__()
        self.keys, self.stem = keys, nn.Conv2d(3, C, 2, 2)
        self.blocks = nn.ModuleList(Attention() for _ in range(3))
        self.q, self.k = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, image: Tensor) -> Tensor:
        first = self.stem(image).flatten(2).mT
        x = self.blocks[1](*[self.blocks[0](first, first)] * 2)
        rows = {"first": [first], "first, own": [first, x]}.get(self.keys, [x])
        q, k = self.q(x), self.k(torch.cat(rows, 1))
        found = (q @ k.mT).softmax(-1) @ k
        if self.keys == "own, pooled":
            return x + (q + found)  # type: ignore[no-any-return]
        if self.keys == "own, normed":
            return F.layer_norm(x, (C,)) + (q + found)
        if self.keys == "own, added":
            return q + found  # type: ignore[no-any-return]
        return x + found  # type: ignore[no-any-return]


def image() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    return x, x[..., ::4, :1].repeat_interleave(4, -2).expand_as(x).contiguous()


@torch.no_grad()
@pytest.mark.parametrize(
    "keys", ["own", "own, pooled", "own, normed", "own, added", "first", "first, own"]
)
def test_keys_are_matched_where_they_are_of_the_tokens_that_merge(keys: str) -> None:
    model, (x, equal) = ready(Sequence(keys)), image()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    site = fast.located.findings.sites[-1]
    by_keys = site.cores[0].key is not site.node
    assert by_keys == ("first" not in keys)
    assert distance(fast(equal), model(equal)) < 1e-9
    unmerged = [u.op for u in fast.report.unmerges if u.op != "output"]
    assert bool(unmerged) == ("first" in keys)
