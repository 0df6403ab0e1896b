"""Models whose code remembers what it made before."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.versions import lacks

pytestmark = TINY
C = 16
Table = Callable[[int, int], Tensor]


def table(images: int, tokens: int) -> Tensor:
    return torch.arange(tokens).double()[:, None] * torch.linspace(0, 1, C).double()


def by_lru_cache() -> Table:
    return functools.lru_cache(table)


def by_dict() -> Table:
    kept: dict[int, Tensor] = {}

    def look_up(images: int, tokens: int) -> Tensor:
        if tokens not in kept:
            kept[tokens] = table(images, tokens)
        return kept[tokens]

    return look_up


def by_last() -> Table:
    kept: list[Tensor] = []

    def look_up(images: int, tokens: int) -> Tensor:
        if not kept or kept[0].shape[0] != tokens:
            kept[:] = [table(images, tokens)]
        return kept[0]

    return look_up


class Remembering(nn.Module):
    """Places that a function makes once for each size, and keeps outside of the model."""

    def __init__(self, places: Table, of_batch: bool = False) -> None:
        super().__init__()
        self.places, self.of_batch = places, of_batch
        self.stem, self.head = nn.Conv2d(3, C, 4, 4), nn.Linear(C, 3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(C, 2, 32, batch_first=True, norm_first=True)
            for _ in range(2)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        x = x + self.places(int(x.shape[0]) if self.of_batch else 0, x.shape[1])
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.head(x.mean(1))
        return result


@pytest.mark.few(2)
@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("made", [by_lru_cache, by_dict, by_last])
def test_a_model_keeps_no_values_of_a_trace(made: Callable[[], Table], check: bool) -> None:
    model = Remembering(made()).double().eval()
    x = torch.randn(3, 3, 24, 24, dtype=torch.float64)
    fast = tome_fx.transform(model, 4, example_inputs=x, min_ratio=0, check=check)
    expected = run(model, x)
    assert not isinstance(expected, FakeTensor)
    assert distance(run(fast, x), expected) > 1e-6
    fast.r = 0
    assert distance(run(fast, x), expected) < 1e-12
    model.train(), fast.train()
    fast(x).sum().backward()
    assert not isinstance(model(x), FakeTensor)


@lacks("gives a cached function that a module holds the module too")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_what_is_kept_for_each_batch_is_real_for_small_ones() -> None:
    model = Remembering(functools.lru_cache(table), of_batch=True).double().eval()
    x = torch.randn(5, 3, 24, 24, dtype=torch.float64)
    fast = tome_fx.transform(model, 0, example_inputs=x, min_ratio=0)
    for images in (x, x[:2], x[:4]):
        expected = run(model, images)
        assert not isinstance(expected, FakeTensor)
        assert distance(run(fast, images), expected) < 1e-12


def test_a_cache_that_somebody_else_filled_by_tracing_is_told_of() -> None:
    model = Remembering(by_dict()).double().eval()
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    torch.export.export(model, (x,))
    with pytest.warns(tome_fx.ToMeWarning, match="Empty what it keeps, run the model once"):
        tome_fx.transform(model, 4, example_inputs=x, min_ratio=0)
