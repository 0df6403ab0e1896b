"""Several rows of tokens side by side in one attention: each merges within itself."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
C, HEADS, IMAGE, TEXT = 8, 2, 16, 10


class Mixed(nn.Module):
    """Attention and an MLP over one row that holds image and text: BEiT-3, FLUX's single blocks."""

    def __init__(self, written: bool = False) -> None:
        super().__init__()
        self.written = written
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def heads(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return self.qkv(x).reshape(b, n, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)  # type: ignore[no-any-return]

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.written:
            y = ((q @ k.mT) * 0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.mix(*self.heads(x)))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Doubled(nn.Module):
    """Joint attention of two rows with weights, residuals and MLPs of their own: MM-DiT."""

    def __init__(self, written: bool = False) -> None:
        super().__init__()
        self.left, self.right = Mixed(written), Mixed(written)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        joint = torch.cat([self.left.heads(x), self.right.heads(y)], dim=3)
        mixed = self.left.mix(*joint)
        x = x + self.left.out(mixed[:, : x.shape[1]])
        y = y + self.right.out(mixed[:, x.shape[1] :])
        return x + self.left.mlp(x), y + self.right.mlp(y)


class Both(nn.Module):
    """An image and a text, of words or of features, through two blocks of either kind."""

    def __init__(
        self, doubled: bool, written: bool, text_first: bool, token: bool, words: bool = False
    ) -> None:
        super().__init__()
        self.doubled, self.text_first = doubled, text_first
        self.stem = nn.Conv2d(3, C, 2, 2)
        self.embed = nn.Embedding(11, C) if words else nn.Linear(6, C)
        self.token = nn.Parameter(torch.zeros(1, 1, C)) if token else None
        kind = Doubled if doubled else Mixed
        self.blocks = nn.ModuleList(kind(written) for _ in range(2))
        self.head = nn.Linear(C, 5)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x, y = self.stem(image).flatten(2).mT, self.embed(text)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.text_first:
            x, y = y, x
        if not self.doubled:
            x = torch.cat([x, y], dim=1)
        for block in self.blocks:
            if self.doubled:
                x, y = block(x, y)
            else:
                x = block(x)
        return self.head(x.mean(1) + (y.mean(1) if self.doubled else 0))  # type: ignore[no-any-return]


def inputs(words: bool = False, batch: int = 3) -> tuple[Tensor, Tensor]:
    image = torch.randn(batch, 3, 8, 8, dtype=torch.float64)
    text = torch.randn(batch, TEXT, 6, dtype=torch.float64)
    return image, (10 * text[..., 0].sigmoid()).long() if words else text


KINDS = list(itertools.product([False, True], repeat=4))


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "".join(str(int(v)) for v in k))
def test_each_row_merges_within_itself(kind: tuple[bool, bool, bool, bool]) -> None:
    model = Both(*kind).double().eval()
    randomise(model, 2)
    image, text = inputs()
    fast = tome_fx.transform(model, 2, example_inputs=(image, text))
    assert fast.schedule == (2, 2, 2, 2)
    tiles, words = image[:, :, :2, :2].repeat(1, 1, 4, 4), text[:, :1].expand_as(text)
    assert distance(fast(tiles, words), model(tiles, words)) < 1e-12
    whole = fast(image, text)
    assert distance(whole, model(image, text)) > 1e-6
    assert distance(fast(image[:1], text[:1]), whole[:1]) < 1e-12
    maps = fast.token_map(image, text)
    streams = [IMAGE, TEXT] if not kind[2] else [TEXT, IMAGE]
    assert (maps >= 0).sum(2)[:, 0].tolist() == 2 * streams
    assert maps.amax((1, 2)).tolist() == [n - 3 - 2 * i for i in range(2) for n in streams]
    fast.r = (2, -1.0)  # by layers, whose rows share it
    assert fast.schedule == (4, 4, 0, 0)
    fast.r = [2, 0, 2, 0]  # one of the two rows alone
    assert distance(fast(tiles, words), model(tiles, words)) < 1e-12
    fast.r = 0
    assert torch.equal(fast(image, text), model(image, text))


class Towers(nn.Module):
    """An image and a text by themselves, then side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, C, 2, 2), nn.Embedding(11, C)
        self.image, self.text, self.both = Mixed(False), Mixed(False), Mixed(False)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x, y = self.image(self.stem(image).flatten(2).mT), self.text(self.embed(text))
        return self.both(torch.cat([x, y], dim=1)).mean(1)  # type: ignore[no-any-return]


@torch.no_grad()
def test_words_stay_whole_in_a_tower_of_their_own() -> None:
    model = Towers().double().eval()
    randomise(model, 2)
    image, text = inputs(words=True)
    fast = tome_fx.transform(model, 3, example_inputs=(image, text))
    assert [block.attention for block in fast.report.blocks] == ["image", "both"]
    assert [miss.module for miss in fast.report.near_misses] == ["both", "text"]
    tiles = image[:, :, :2, :2].repeat(1, 1, 4, 4)
    assert distance(fast(tiles, text), model(tiles, text)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True])
def test_words_stay_whole_beside_an_image(doubled: bool) -> None:
    model = Both(doubled, False, True, True, words=True).double().eval()
    randomise(model, 2)
    image, text = inputs(words=True)
    fast = tome_fx.transform(model, 3, example_inputs=(image, text))
    assert fast.schedule == (3, 3)
    assert {miss.reason for miss in fast.report.near_misses} == {
        "what is looked up in a table, as words are, stays whole beside the tokens of an image"
    }
    assert fast.token_map(image, text).shape == (2, 3, IMAGE)
    tiles = image[:, :, :2, :2].repeat(1, 1, 4, 4)
    assert distance(fast(tiles, text), model(tiles, text)) < 1e-12
    assert distance(fast(image, text), model(image, text)) > 1e-6


class Skipped(nn.Module):
    """Two rows in joint attention, then in one row; MLPs add to what came before attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, C, 2, 2), nn.Linear(6, C)
        self.first, self.more = Doubled(), nn.ModuleList(Mixed() for _ in range(2))
        self.head = nn.Linear(C, 5)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x, y = self.stem(image).flatten(2).mT, self.embed(text)
        left, right = self.first.left, self.first.right
        joint = torch.cat([left.heads(x), right.heads(y)], dim=3)
        mixed = left.mix(*joint)
        x = x + left.mlp(x + left.out(mixed[:, : x.shape[1]]))
        y = y + right.mlp(y + right.out(mixed[:, x.shape[1] :]))
        both = torch.cat([x, y], dim=1)
        for block in self.more:
            heads = block.heads(both)  # type: ignore[operator]
            met = both + block.out(block.mix(*heads))  # type: ignore[operator]
            both = both + block.mlp(met)  # type: ignore[operator]
        return self.head(both[:, : x.shape[1]].mean(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_skip_from_before_the_attention_stays_merged_in_each_row() -> None:
    model = Skipped().double().eval()
    randomise(model, 2)
    image, text = inputs()
    fast = tome_fx.transform(model, 2, example_inputs=(image, text))
    assert fast.schedule == (2,) * 6
    assert {unmerge.kind for unmerge in fast.report.unmerges} == {"merge"}
    tiles, words = image[:, :, :2, :2].repeat(1, 1, 4, 4), text[:, :1].expand_as(text)
    assert distance(fast(tiles, words), model(tiles, words)) < 1e-12
    assert distance(fast(image, text), model(image, text)) > 1e-6
