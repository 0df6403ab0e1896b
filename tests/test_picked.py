"""Tokens that a model keeps by number, and tokens that it puts back to their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_joint import C, Mixed
from tests.zoo.entry import randomise

pytestmark = TINY
N, KEPT = 16, (0, 3, 5, 6, 8, 9, 10, 12, 13, 15)
Pick = Callable[[Tensor, Tensor, Tensor], Tensor]


def wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[2])


def numbers(x: Tensor, index: Tensor) -> Tensor:
    """Where the tokens ``index`` of each image stand in a row of those of all images."""
    return index + torch.arange(x.shape[0])[:, None] * x.shape[1]


class Model(nn.Module):
    """Blocks before and behind a step on the tokens; it has numbers and is given some."""

    def __init__(self, step: Pick, before: int = 1, token: bool = False) -> None:
        super().__init__()
        self.step, self.stem = step, nn.Conv2d(3, C, 2, 2)
        self.first = nn.ModuleList(Mixed() for _ in range(before))
        self.last = nn.ModuleList(Mixed() for _ in range(2))
        self.token = nn.Parameter(torch.zeros(1, 1, C)) if token else None
        self.head = nn.Linear(C, 5)
        self.register_buffer("kept", torch.tensor(KEPT))

    def forward(self, image: Tensor, given: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.first:
            x = block(x)
        x = self.step(x, self.kept, given)
        for block in self.last:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@torch.no_grad()
def checked(model: nn.Module, given: Tensor, r: int = 2) -> Any:
    """Transform, and hold the result to the laws: r=0, duplicates, images by themselves."""
    randomise(model)
    model.double().eval()
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, r, example_inputs=(image, given))
    colour = image[..., :1, :1].expand_as(image).contiguous()
    assert distance(fast(colour, given), model(colour, given)) < 1e-9
    whole = fast(image, given)
    assert distance(whole, model(image, given)) > 1e-6
    for i in range(3):
        assert distance(fast(image[i : i + 1], given[i : i + 1]), whole[i : i + 1]) < 1e-9
    five = fast(image[[0, 1, 2, 1, 0]], given[[0, 1, 2, 1, 0]])
    assert distance(five, whole[[0, 1, 2, 1, 0]]) < 1e-9
    fast.r = 0
    assert torch.equal(fast(image, given), model(image, given))
    fast.r = r
    return fast


PICKS: Mapping[str, Pick] = {
    "gather a buffer": lambda x, kept, given: x.gather(
        1, kept[None, :, None].expand(x.shape[0], -1, x.shape[2])
    ),
    "gather a list": lambda x, kept, given: x.gather(
        1, torch.tensor(KEPT)[None, :, None].repeat(x.shape[0], 1, x.shape[2])
    ),
    "index_select": lambda x, kept, given: x.index_select(1, kept),
    "index by a buffer": lambda x, kept, given: x[:, kept],
    "index by a list": lambda x, kept, given: x[:, list(KEPT)],
    "half by a list": lambda x, kept, given: x[:, [0, 3, 5, 6, 8, 9, 10, 12]],
    "gather what is given": lambda x, kept, given: x.gather(1, wide(given, x)),
    "index of a folded axis": lambda x, kept, given: x.reshape(-1, x.shape[2])[
        numbers(x, given).reshape(-1)
    ].reshape(x.shape[0], -1, x.shape[2]),
    "index_select of a folded axis": lambda x, kept, given: (
        x.flatten(0, 1)
        .index_select(0, numbers(x, given).flatten())
        .view(x.shape[0], given.shape[1], -1)
    ),
    "rows of a folded axis": lambda x, kept, given: x.flatten(0, 1)[numbers(x, given)],
    "index by what is given": lambda x, kept, given: x[torch.arange(x.shape[0])[:, None], given],
    "gather where images are counted": lambda x, kept, given: x.gather(
        1, wide(given, x) + 0 * len(x)
    ),
}


def given(count: int = 10) -> Tensor:
    """Other places for each image."""
    return torch.stack([torch.randperm(N)[:count] for _ in range(3)])


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "before"), [(name, i % 2) for i, name in enumerate(PICKS)])
def test_tokens_that_are_kept_by_number_merge(name: str, before: int) -> None:
    fast = checked(Model(PICKS[name], before), given())
    assert fast.schedule == (2,) * (before + 2)
    assert [u.reason for u in fast.report.unmerges] == ["it picks tokens by number"] * before


@torch.no_grad()
def test_tokens_that_are_drawn_merge() -> None:
    """As a dropout of patches leaves them."""

    def step(x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
        drawn = torch.randn(x.shape[:2]).topk(10, dim=-1).indices
        return x[torch.arange(x.shape[0])[:, None], drawn]

    model, image = Model(step).double().eval(), torch.randn(3, 3, 8, 8).double()
    fast = tome_fx.transform(model, 2, example_inputs=(image, given()))
    assert fast.schedule == (2, 2, 2)
    colour = image[..., :1, :1].expand_as(image).contiguous()
    assert distance(fast(colour, given()), model(colour, given())) < 1e-9
    for part in (image[:1], torch.cat([image, image])):
        places = given()[:1].expand(len(part), -1)
        found = []
        for program in (tome_fx.transform(model, 0, example_inputs=(image, given())), model):
            torch.manual_seed(0)
            found.append(program(part, places))
        assert torch.equal(*found)


def test_beside_a_class_token() -> None:
    def step(x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1:].gather(1, wide(given, x))], dim=1)

    fast = checked(Model(step, token=True), given())
    assert fast.schedule == (2, 2, 2)


def test_tokens_of_two_batches_stay_as_they_are() -> None:
    """What the images are compared with may be another number of texts."""

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = Model(lambda x, kept, given: x, before=0)
            self.words, self.block = nn.Embedding(11, C), Mixed()
            self.head = nn.Linear(C, 5)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            y = self.head(self.block(self.words(text)).mean(1))
            return self.image(image, text) @ y.mT  # type: ignore[no-any-return]

    model = Texts().double().eval()
    image, text = torch.randn(3, 3, 8, 8).double(), torch.randint(11, (2, 10))
    fast = tome_fx.transform(model, 2, example_inputs=(image, text))
    for count in (1, 2, 5):
        more = image[[0, 1, 2, 1, 0]][:count]
        assert fast(more, text).shape == (count, 2)


def seen(x: Tensor, given: Tensor) -> Tensor:
    """What an encoder makes of the tokens that it sees."""
    x = x.gather(1, wide(given, x))
    return x + (x @ x.mT).softmax(-1) @ x


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], N, x.shape[2], dtype=x.dtype)


def masked(x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
    """In a tensor that holds something else at all places."""
    full = torch.ones(1, 1, x.shape[2], dtype=x.dtype).expand(x.shape[0], N, -1).clone()
    full[:, kept] = x[:, kept].sin()
    return full


PLACED: Mapping[str, Pick] = {
    "scatter": lambda x, kept, given: zeros(x).scatter(1, wide(given, x), seen(x, given)),
    "scatter among tokens": lambda x, kept, given: torch.zeros_like(x).scatter(
        1, wide(given, x), seen(x, given)
    ),
    "scatter by a buffer": lambda x, kept, given: zeros(x).scatter(
        1, kept[None, :, None].expand(x.shape[0], -1, x.shape[2]), x[:, kept]
    ),
    "scatter_add": lambda x, kept, given: zeros(x).scatter_add(1, wide(given, x), seen(x, given)),
    "index_copy": lambda x, kept, given: zeros(x).index_copy(1, kept, x[:, kept].sin()),
    "index_add": lambda x, kept, given: zeros(x).index_add(1, kept, x[:, kept].sin()),
    "index_put": masked,
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PLACED)
def test_tokens_that_are_put_back_merge_again(name: str) -> None:
    fast = checked(Model(PLACED[name]), given())
    assert fast.report.blocks[-1].tokens_in == N - 2
    assert sum(fast.schedule) >= 6
    reasons = {u.reason for u in fast.report.unmerges}
    assert reasons <= {"it picks tokens by number", "it puts tokens to places by number"}


def hard(x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
    """Each token takes the value of the one that it is most similar to."""
    best = (x @ x.mT).argmax(-1, keepdim=True)
    return x + torch.zeros_like(x @ x.mT).scatter(-1, best, 1.0) @ x


def assigned(x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
    """The tokens of each of three groups are summed, and the groups given back to the tokens."""
    logits = x[..., :3]
    best = logits.argmax(-1, keepdim=True)
    chosen = torch.zeros_like(logits).scatter(-1, best, 1.0)
    ones = torch.nn.functional.one_hot(best[..., 0], 3).to(x.dtype)
    return x + chosen @ (ones.mT @ x) / N


@pytest.mark.parametrize("step", [hard, assigned])
def test_hard_attention(step: Pick) -> None:
    fast = checked(Model(step), given())
    assert fast.report.blocks[-1].tokens_in < N
    told = {"hard": {"unmerge", "merge"}, "assigned": set()}[step.__name__]
    assert {u.kind for u in fast.report.unmerges} <= told
