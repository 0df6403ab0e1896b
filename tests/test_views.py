"""Images in one batch, or frames of a clip, taken apart behind the stem, attend to each other."""

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
Join = Callable[[Tensor, Tensor], Tensor]
Parts = Callable[[Tensor, int], tuple[Tensor, ...]]


def in_turn(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y], 1).flatten(0, 1)


def after(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y]).flatten(0, 1)


def of_rows(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x.flatten(1), y.flatten(1)]).unflatten(1, x.shape[1:])


def on_channels(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1).unflatten(1, (2, -1)).flatten(0, 1)


def on_an_axis(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x[:, None], y[:, None]], 1).flatten(0, 1)


def whole(x: Tensor, b: int) -> Tensor:
    return x.unflatten(0, (b, 2))


# How two images come into one batch, and how their tokens are taken apart again.
PAIRS: dict[str, tuple[Join, Parts]] = {
    "cat, chunk": (lambda x, y: torch.cat([x, y]), lambda x, b: x.chunk(2, 0)),
    "cat, slices": (lambda x, y: torch.cat([x, y]), lambda x, b: (x[:b], x[b:])),
    "cat, unbind": (lambda x, y: torch.cat([x, y]), lambda x, b: x.unflatten(0, (2, b)).unbind(0)),
    "cat of rows, chunk": (of_rows, lambda x, b: x.chunk(2)),
    "cat on channels, unbind": (on_channels, lambda x, b: whole(x, b).unbind(1)),
    "cat on an axis, unbind": (on_an_axis, lambda x, b: whole(x, b).unbind(1)),
    "stack, unbind": (in_turn, lambda x, b: whole(x, b).unbind(1)),
    "stack, by number": (in_turn, lambda x, b: (whole(x, b)[:, 0], whole(x, b)[:, -1])),
    "stack, by numbers": (in_turn, lambda x, b: tuple(whole(x, b)[:, [i]][:, 0] for i in (0, 1))),
    "stack, split": (in_turn, lambda x, b: tuple(t[:, 0] for t in whole(x, b).split(1, 1))),
    "stack, steps": (in_turn, lambda x, b: (x[::2], x[1::2])),
    "stack in front, chunk": (after, lambda x, b: x.chunk(2)),
    "stack in front, unbind": (after, lambda x, b: x.unflatten(0, (2, b)).unbind(0)),
    "sequence first": (in_turn, lambda x, b: tuple(
        t.transpose(0, 1) for t in x.transpose(0, 1).unflatten(1, (b, 2)).unbind(2))),
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(y).mT).softmax(-1)
        return x + weights @ self.v(y)  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two images through one stem and ``front`` blocks in one batch; then each has its own."""

    def __init__(self, name: str, says: bool = True, front: int = 0) -> None:
        super().__init__()
        self.join, self.parts = PAIRS[name]
        self.says, self.stem = says, nn.Conv2d(3, C, 2, 2)
        self.front = nn.ModuleList(Attention() for _ in range(front))
        self.alone = nn.ModuleList(Attention() for _ in range(2))
        self.other = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.says:
            assert first.shape == second.shape
        return self.apart(self.join(first, second), first.shape[0])

    def apart(self, images: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        x = self.stem(images).flatten(2).mT
        for block in self.front:
            x = block(x, x)
        a, b = self.parts(x, rows)
        return self.compared(a, b)

    def compared(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for alone, other in zip(self.alone, self.other, strict=True):
            a, b = alone(a, a), alone(b, b)
            a = other(a, b)
            b = other(b, a)
        return a, b.mean(1)


class Clip(Pair):
    """The same of a clip of two frames."""

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.apart(clip.flatten(0, 1), clip.shape[0])


class Tubes(Pair):
    """The same, with a stem over time and space."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.stem = nn.Conv3d(3, C, (1, 2, 2), (1, 2, 2))  # type: ignore[assignment]

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.stem(clip.transpose(1, 2))
        return self.compared(x[:, :, 0].flatten(2).mT, x[:, :, 1].flatten(2).mT)


def drawn(size: int) -> tuple[Tensor, ...]:
    """Two random images; then one with rows of one colour and one with columns, in patches of 2.

    Other tokens are equal in each of the last.
    """
    x, y = torch.randn(2, 3, 3, size, size, dtype=torch.float64)
    rows = x[..., ::2, :1].repeat_interleave(2, -2).expand_as(x).contiguous()
    columns = y[..., :1, ::2].repeat_interleave(2, -1).expand_as(y).contiguous()
    return x, y, rows, columns


def ready(model: nn.Module) -> nn.Module:
    randomise(model)
    return model.double().eval()


@torch.no_grad()
def assert_apart(model: nn.Module, schedule: list[int], clip: bool = False) -> None:
    x, y, rows, columns = drawn(10)
    pairs = [(x, y), (rows, columns)]
    inputs, equal = [(torch.stack(pair, 1),) if clip else pair for pair in pairs]
    fast = tome_fx.transform(model, schedule, example_inputs=inputs, min_ratio=0)
    assert fast.schedule == tuple(schedule)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    for got, want in zip(fast(*equal), model(*equal), strict=True):
        assert distance(got, want) < 1e-9
    results = fast(*inputs)
    for got, want in zip(fast(*(t[:1] for t in inputs)), results, strict=True):
        assert distance(got, want[:1]) < 1e-9
    assert distance(results[0], model(*inputs)[0]) > 1e-6


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PAIRS)
def test_each_image_of_a_pair_has_its_own_tokens(name: str) -> None:
    assert_apart(ready(Pair(name)), [3, 3, 3, 3])


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["cat, chunk", "stack, unbind", "stack in front, chunk"])
def test_from_where_they_part(name: str) -> None:
    """Blocks in front know both images, each with groups of its own, which end where they part."""
    assert_apart(ready(Pair(name, front=2)), [0, 0, 3, 3, 3, 3])


@pytest.mark.parametrize("model", [Clip, Tubes])
def test_frames_of_a_clip_that_are_picked(model: type[Pair]) -> None:
    assert_apart(ready(model("stack, unbind")), [3, 3, 3, 3], clip=True)


@torch.no_grad()
def test_frames_that_merged_alike_part_with_all_tokens() -> None:
    model = ready(Pair("stack, unbind", front=2))
    x, _, rows, _ = drawn(10)
    fast = tome_fx.transform(model, [3, 3, 3, 0, 0, 0], example_inputs=(x, x), min_ratio=0)
    assert {u.op for u in fast.report.unmerges} == {"aten.unbind.int", "output"}
    for got, want in zip(fast(rows, rows.flip(1)), model(rows, rows.flip(1)), strict=True):
        assert distance(got, want) < 1e-9


@torch.no_grad()
def test_as_many_first_images_as_second_ones_unless_the_model_says_so() -> None:
    model, (x, y, *_) = ready(Pair("cat, chunk", says=False)), drawn(10)
    fast = tome_fx.transform(model, 1, example_inputs=(x, y), min_ratio=0)
    for got, want in zip(fast(x[:2], y[:2]), fast(x, y), strict=True):
        assert distance(got, want[:2]) < 1e-9
    with pytest.raises(tome_fx.ShapeError):
        fast(x[:1], y)


class Copies(Pair):
    """One image twice, its second copy changed place by place: tokens of one image."""

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        x = self.stem(image).flatten(2).mT
        for block in self.alone:
            q, k = (torch.stack([x, x.sin()], 1)[:, i] for i in range(2))
            x = x + block(q, k)
        return x.mean(1)


@torch.no_grad()
def test_copies_of_one_image_share_its_tokens() -> None:
    model, (x, _, rows, _) = ready(Copies("stack, unbind")), drawn(10)
    fast = tome_fx.transform(model, [3, 3], example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3, 3)
    assert fast.report.unmerges == ()
    assert distance(fast(rows), model(rows)) < 1e-9


class Labelled(Pair):
    """A number for each image, written out as another value of the images is."""

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(second).flatten(2).mT
        for alone in self.alone:
            x = alone(x, x)
        pooled = x.mean(1)
        return pooled, first[:, None].expand_as(pooled).sum(0)


def test_a_number_for_each_image_is_checked_too() -> None:
    model, numbers, x = Labelled("cat, chunk").eval(), torch.randn(3), torch.randn(3, 3, 8, 8)
    fast = tome_fx.transform(model, 0, example_inputs=(numbers, x), min_ratio=0)
    for got, want in zip(fast(numbers[:2], x[:2]), model(numbers[:2], x[:2]), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(tome_fx.ShapeError, match="as many of both"):
        fast(numbers[:1], x)
