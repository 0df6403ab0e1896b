"""Several images as inputs: towers that share weights, crops, pairs put in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.tiny import images, tiny

pytestmark = TINY


class Shared(nn.Module):
    """One encoder for all; its code takes the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shift = tiny(), nn.Parameter(torch.randn(1, 3, 1, 1))

    def encode(self, x: Tensor) -> Tensor:
        return self.body(x + self.shift.expand(len(x), -1, -1, -1))  # type: ignore[no-any-return]


class Two(Shared):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.encode(a), self.encode(b)


class Contrast(Shared):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.encode(a) @ self.encode(b).T


class Crops(Shared):
    def forward(self, crops: list[Tensor]) -> Any:
        return [self.encode(x) for x in crops]


class Joined(Shared):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        first, second = self.encode(torch.cat([a, b])).chunk(2)
        return first - second


def given(model: nn.Module, batch: int) -> tuple[Any, ...]:
    views = [images(batch, seed=seed) for seed in range(3)]
    return (views,) if isinstance(model, Crops) else tuple(views[:2])


@torch.no_grad()
@pytest.mark.parametrize(("kind", "towers"), [(Two, 2), (Contrast, 2), (Crops, 3), (Joined, 1)])
def test_all_images_merge_for_any_batch(kind: type[Shared], towers: int) -> None:
    model = kind().eval()
    fast = tome_fx.transform(model, 2, example_inputs=given(model, 2))
    assert fast.schedule == (2, 2) * towers
    alone = tome_fx.transform(model.body, 2, example_inputs=images(2))
    model.body = alone
    for batch in (1, 2, 5):
        wanted = model(*given(model, batch))
        if kind is Joined:  # frames of a sample, by the order of the batch
            wanted = model.encode(given(model, batch)[0]) - model.encode(given(model, batch)[1])
        found = fast(*given(model, batch))
        pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
        assert all(distance(ours, theirs) < 1e-5 for ours, theirs in pairs)


def test_it_says_that_they_have_one_batch() -> None:
    model = Two().eval()
    fast = tome_fx.transform(model, 2, example_inputs=given(model, 2))
    assert "all inputs of images have one batch" in str(fast.report)
    with pytest.raises(tome_fx.ShapeError, match="b has 5 rows and a has 2"):
        fast(images(2), images(5))


def test_an_example_of_other_numbers_ties_none() -> None:
    model, a, b = Contrast().eval(), images(1), images(2)
    fast = tome_fx.transform(model, 2, example_inputs=(a, b))
    assert "have one batch" not in str(fast.report)
    assert fast(a, b).shape == (1, 2)


def test_texts_that_are_embedded_keep_theirs_too() -> None:
    class WithEmbedded(Shared):
        def forward(self, a: Tensor, texts: Tensor) -> Tensor:
            return self.encode(a) @ texts.mean(1).T

    class OfPatches(nn.Module):
        """Patches and texts, both with three axes, each through attention."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.texts = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, patches: Tensor, texts: Tensor) -> Tensor:
            return self.layer(patches).mean(1) @ self.texts(texts).mean(1).T

    model, patches, texts = OfPatches().eval(), torch.randn(2, 16, 8), torch.randn(2, 7, 8)
    fast = tome_fx.transform(model, 2, example_inputs=(patches, texts))
    assert fast(torch.randn(5, 16, 8), torch.randn(3, 7, 8)).shape == (5, 3)
    other = WithEmbedded().eval()
    fast = tome_fx.transform(other, 2, example_inputs=(images(2), torch.randn(2, 4, 10)))
    assert fast(images(5), torch.randn(3, 4, 10)).shape == (5, 3)


def test_texts_keep_a_batch_of_their_own() -> None:
    class WithTexts(Shared):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 10)

        def forward(self, a: Tensor, texts: Tensor) -> Tensor:
            return self.encode(a) @ self.words(texts).mean(1).T

    model, texts = WithTexts().eval(), torch.randint(9, (3, 4))
    fast = tome_fx.transform(model, 2, example_inputs=(images(2), texts))
    assert fast.schedule == (2, 2)
    assert fast(images(5), texts).shape == (5, 3)
