"""Images and frames that part, each merge by themselves, and come together in many ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_views import Attention, C, ready

pytestmark = TINY
Blocks = nn.ModuleList


class Clip(nn.Module):
    """Three frames of a clip, and what is made of their tokens."""

    def __init__(self, made: Callable[[Blocks, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.made = nn.Conv2d(3, C, 2, 2), made
        self.blocks = nn.ModuleList(Attention() for _ in range(5))

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip.flatten(0, 1)).flatten(2).mT
        return self.made(self.blocks, x.unflatten(0, (clip.shape[0], -1)))


def clips() -> tuple[Tensor, Tensor]:
    """A random clip, and one of which 4 patches of each class are equal in all frames.

    Rows of patches are equal in the first frame, columns in the next ones, two and two.
    """
    x = torch.randn(2, 3, 3, 12, 12, dtype=torch.float64)
    equal = x[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2)
    equal[:, 0] = equal[:, 0, :, :, :1]
    equal[:, 1:] = equal[:, 1:, :, :1]
    return x, equal


def own(b: Blocks, x: Tensor, blocks: int = 1) -> list[Tensor]:
    """Each frame by itself through the first blocks."""
    frames = list(x.unbind(1))
    for block in b[:blocks]:
        frames = [block(t, t) for t in frames]
    return frames


def at(b: Blocks, i: int, x: Tensor) -> Tensor:
    return b[i](x, x)  # type: ignore[no-any-return]


def one_ahead(b: Blocks, x: Tensor) -> Tensor:
    first, second, _ = x.unbind(1)
    return torch.cat([at(b, 1, at(b, 0, first)), second], 1).relu()


def one_added(b: Blocks, x: Tensor) -> Tensor:
    first, second, _ = x.unbind(1)
    return (second.tanh() + at(b, 0, first)).relu()


def recurrent(b: Blocks, x: Tensor) -> Tensor:
    state = x[:, 0].tanh()
    for i in range(2):
        state = at(b, 1, state.tanh() + at(b, 0, x[:, i]))
    return state


def compared(b: Blocks, x: Tensor) -> Tensor:
    first, second, _ = own(b, x)
    first, second = b[1](first, second), b[1](second, first)
    return at(b, 3, at(b, 2, (first - second).abs()))


def joint(b: Blocks, x: Tensor) -> Tensor:
    return at(b, 2, at(b, 1, torch.cat(own(b, x), 1)))


# What may stay merged, and what may not, is exact; nothing is averaged but where it is said.
MADE: dict[str, Callable[[Blocks, Tensor], Tensor]] = {
    "stacked again": lambda b, x: torch.stack(own(b, x, 2), 1).relu(),
    "largest of all": lambda b, x: torch.stack(own(b, x), 1).amax(1),
    "one of three": lambda b, x: torch.where(own(b, x)[0] > 0, *own(b, x)[1:]),
    "between": lambda b, x: torch.addcmul(*own(b, x)),
    "one twice": lambda b, x: torch.cat([*own(b, x)[:2], own(b, x)[0]], -1).relu(),
    "in one row": lambda b, x: torch.cat(own(b, x), 1).relu(),
    "to all": lambda b, x: b[1](own(b, x)[0], torch.cat(own(b, x), 1)),
    "one ahead": one_ahead,
    "one added": one_added,
    "recurrent": recurrent,
    "compared": compared,
    "joint": joint,
    "gathered": lambda b, x: b[1](*(
        at(b, 0, x.gather(1, torch.full_like(x[:, :1], i, dtype=torch.long))[:, 0])
        for i in range(2))),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize("name", MADE)
def test_frames_come_together(name: str) -> None:
    model, (x, equal) = ready(Clip(MADE[name])), clips()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert sum(fast.schedule) >= 3
    assert distance(fast(equal), model(equal)) < 1e-9
    assert distance(fast(x[:1]), fast(x)[:1]) < 1e-9


@torch.no_grad()
def test_own_blocks_then_joint_attention_stay_merged() -> None:
    model, (x, equal) = ready(Clip(joint)), clips()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3,) * 9
    assert {u.op for u in fast.report.unmerges} == {"output"}
    assert distance(fast(equal), model(equal)) < 1e-9
    assert distance(fast(x), model(x)) > 1e-6


def shifted(x: Tensor) -> Tensor:
    """An eighth of the channels from the next frame, another from the one before."""
    ahead = torch.cat([x[:, 1:, :, :1], x[:, -1:, :, :1]], 1)
    back = torch.cat([x[:, :1, :, 1:2], x[:, :-1, :, 1:2]], 1)
    return torch.cat([ahead, back, x[..., 2:]], -1)


def shifting(b: Blocks, x: Tensor) -> Tensor:
    for block in b[:3]:
        y = shifted(x).flatten(0, 1)
        x = block(y, y).unflatten(0, (x.shape[0], -1))
    return x.mean((1, 2))


@torch.no_grad()
def test_frames_that_merge_alike_may_be_shifted() -> None:
    model, (x, equal) = ready(Clip(shifting)), clips()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    assert fast.report.unmerges == ()
    assert distance(fast(equal), model(equal)) < 1e-9


class Volume(nn.Module):
    """Slices of a volume on its last axis, that look at each other."""

    def __init__(self, parts: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.stem, self.parts = nn.Conv3d(3, C, (2, 2, 1), (2, 2, 1)), parts
        self.blocks = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        b = self.blocks
        first, second, *_ = (t.flatten(2).mT for t in self.parts(self.stem(volume)))
        first, second = at(b, 0, first), at(b, 0, second)
        return b[1](first, second), b[2](second, first)


INNER: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "unbind": lambda x: x.unbind(-1),
    "by number": lambda x: (x[..., 0], x[..., 1]),
    "behind the places": lambda x: x.flatten(2, 3).unflatten(2, (6, 6)).unbind(4),
    "halves": lambda x: x[..., 0].unflatten(-1, (2, -1)).unbind(-2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", INNER)
def test_slices_of_an_inner_axis_part(name: str) -> None:
    model, (x, equal) = ready(Volume(INNER[name])), clips()
    x, equal = (t.permute(0, 2, 3, 4, 1).contiguous() for t in (x, equal))
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3, 3)
    for got, want in zip(fast(equal), model(equal), strict=True):
        assert distance(got, want) < 1e-9


def of_frames(b: Blocks, x: Tensor) -> Tensor:
    """A class token in each frame; of these and one more, over time, a row of their own."""
    images, frames = x.shape[:2]
    rows = torch.cat([x.new_ones(images, frames, 1, C), x], 2).flatten(0, 1)
    made = at(b, 1, at(b, 0, rows))[:, 0].unflatten(0, (images, -1))
    return at(b, 3, at(b, 2, torch.cat([x.new_ones(images, 1, C), made], 1)))[:, 0]


@torch.no_grad()
def test_protected_tokens_of_each_row_are_told() -> None:
    fast = tome_fx.transform(ready(Clip(of_frames)), 1, example_inputs=clips()[:1], min_ratio=0)
    assert [(b.tokens_in, b.removed) for b in fast.report.blocks] == [
        (37, 1),
        (36, 1),
        (4, 1),
        (3, 1),
    ]
    assert [(p.count, p.where) for p in fast.report.protected] == [(1, "front"), (1, "front")]
    first, second = (p.reason for p in fast.report.protected)
    assert second == f"{first}, of the tokens of blocks.2"
