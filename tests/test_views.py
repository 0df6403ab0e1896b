"""Two images in one batch that are taken apart behind the stem and attend to each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.zoo.entry import randomise

pytestmark = TINY
C = 8
Parts = Callable[[Tensor, int], tuple[Tensor, Tensor]]
PARTS: dict[str, Parts] = {
    "chunk": lambda x, b: x.chunk(2, 0),  # type: ignore[dict-item]
    "slices": lambda x, b: (x[:b], x[b:]),
    "unbind": lambda x, b: x.unflatten(0, (2, b)).unbind(0),  # type: ignore[dict-item]
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(y).mT).softmax(-1)
        return x + weights @ self.v(y)  # type: ignore[no-any-return]


class Pair(nn.Module):
    def __init__(self, parts: Parts, says: bool = True) -> None:
        super().__init__()
        self.parts, self.says, self.stem = parts, says, nn.Conv2d(3, C, 2, 2)
        self.alone = nn.ModuleList(Attention() for _ in range(2))
        self.other = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.says:
            assert first.shape == second.shape
        x = self.stem(torch.cat([first, second])).flatten(2).mT
        a, b = self.parts(x, first.shape[0])
        for alone, other in zip(self.alone, self.other, strict=True):
            a, b = alone(a, a), alone(b, b)
            a = other(a, b)
            b = other(b, a)
        return a, b.mean(1)


@torch.no_grad()
@pytest.mark.parametrize("says", [True, False], ids=["says so", "takes it as given"])
@pytest.mark.parametrize("name", PARTS)
def test_each_image_of_a_pair_has_its_own_tokens(name: str, says: bool) -> None:
    """There are as many first images as second ones, whether or not the model says so."""
    model = Pair(PARTS[name], says)
    randomise(model)
    model = model.double().eval()
    x, y = torch.randn(2, 3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, [1, 1, 0, 0], example_inputs=(x, y), min_ratio=0)
    assert fast.schedule == (1, 1, 0, 0)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    # The first has rows of one colour, the second two halves: other tokens are equal in each.
    rows = x[..., ::2, :1].repeat_interleave(2, -2).expand_as(x).contiguous()
    columns = y[..., :1, ::4].repeat_interleave(4, -1).expand_as(y).contiguous()
    for got, want in zip(fast(rows, columns), model(rows, columns), strict=True):
        assert distance(got, want) < 1e-9
    whole = fast(x, y)
    for got, want in zip(fast(x[:1], y[:1]), whole, strict=True):
        assert distance(got, want[:1]) < 1e-9
    assert distance(whole[0], model(x, y)[0]) > 1e-6
    with pytest.raises(tome_fx.ShapeError):
        fast(x[:1], y)


class Labelled(Pair):
    """A number for each image, written out as another value of the images is."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(second).flatten(2).mT
        for alone in self.alone:
            x = alone(x, x)
        pooled = x.mean(1)
        return pooled, first[:, None].expand_as(pooled).sum(0)


def test_a_number_for_each_image_is_checked_too() -> None:
    model, numbers, x = Labelled(PARTS["chunk"]).eval(), torch.randn(3), torch.randn(3, 3, 8, 8)
    fast = tome_fx.transform(model, 0, example_inputs=(numbers, x), min_ratio=0)
    for got, want in zip(fast(numbers[:2], x[:2]), model(numbers[:2], x[:2]), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(tome_fx.ShapeError, match="as many of both"):
        fast(numbers[:1], x)
