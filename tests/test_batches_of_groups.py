"""Code that takes its batch apart in groups: frames of clips, the two images of a pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.tiny import images, tiny

pytestmark = TINY
WIDTH = 10


def clips(x: Tensor) -> Tensor:
    """Four frames in turn: each is told of the mean of its clip."""
    frames = x.view(x.shape[0] // 4, 4, *x.shape[1:])
    return (frames + frames.mean(1, keepdim=True)).flatten(0, 1)


def pairs(x: Tensor) -> Tensor:
    """The first images of all pairs, then the second ones."""
    first, second = x.chunk(2)
    return torch.cat([first + second.tanh(), second - first.tanh()])


def asked(x: Tensor) -> Tensor:
    if x.shape[0] % 3 != 0:
        raise ValueError("triples are needed")
    return x * 2.0


class Grouped(nn.Module):
    def __init__(self, group: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.group, self.head = tiny(), group, nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.group(self.body(image)))  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize(("group", "times"), [(clips, 4), (pairs, 2), (asked, 3)])
def test_any_number_of_groups(group: Callable[[Tensor], Tensor], times: int) -> None:
    model, x = Grouped(group).eval().double(), images(5 * times).double()
    fast = tome_fx.transform(model, 2, example_inputs=x[: 2 * times])
    assert fast.schedule == (2, 2)
    assert f"in groups of {times}" in str(fast.report)
    alone = tome_fx.transform(model.body, 2, example_inputs=x)
    assert fast.report.macs_before == alone.report.macs_before + WIDTH * 5
    for number in (times, 2 * times, 5 * times):
        expected = model.head(group(run(alone, x[:number])))
        assert distance(run(fast, x[:number]), expected) < 1e-12
    with pytest.raises(tome_fx.ShapeError, match=f"groups of {times}"):
        fast(x[: times + 1])
    compiled = torch.compile(fast, backend="eager", fullgraph=True, dynamic=True)
    assert distance(run(compiled, x), run(fast, x)) < 1e-12
    fast.r = 0
    assert distance(run(fast, x), run(model, x)) < 1e-12


@torch.no_grad()
def test_one_group_that_goes_another_way_is_refused() -> None:
    model = Grouped(lambda x: -pairs(x) if x.shape[0] == 2 else pairs(x)).eval().double()
    x = images(6).double()
    fast = tome_fx.transform(model, 0, example_inputs=x[:4])
    assert distance(run(fast, x), run(model, x)) < 1e-12
    with pytest.raises(tome_fx.ShapeError, match="else than for 4 images or more"):
        fast(x[:2])


class Guided(nn.Module):
    """Classifier-free guidance as DiT has it, with code that takes the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, image: Tensor, told: Tensor) -> Tensor:
        half = image[: len(image) // 2]
        out = self.body(torch.cat([half, half])) + told
        with_it, without = torch.split(out, len(out) // 2, dim=0)
        half = without + 4 * (with_it - without)
        return torch.cat([half, half])


@torch.no_grad()
def test_halves_that_are_the_same_images() -> None:
    model, x = Guided().eval().double(), images(10).double()
    told = torch.randn(10, WIDTH, dtype=torch.float64)
    fast = tome_fx.transform(model, 2, example_inputs=(x[:4], told[:4]))
    assert fast.schedule == (2, 2)
    assert "in groups of 2" in str(fast.report)
    model.body = tome_fx.transform(model.body, 2, example_inputs=x)
    for number in (2, 4, 10):
        assert distance(fast(x[:number], told[:number]), model(x[:number], told[:number])) < 1e-12
