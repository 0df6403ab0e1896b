"""Clips whose patches are made of one frame each: the same places of all frames merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY


class Factorised(nn.Module):
    """Two blocks within each frame, then one along time at each place."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        size = (depth, 4, 4)
        self.stem = nn.Conv3d(3, 8, size, size)
        self.inside, self.along = nn.Sequential(self.block(), self.block()), self.block()

    @staticmethod
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        images, frames, places, width = x.shape
        x = self.inside(x.reshape(images * frames, places, width))
        x = x.view(images, frames, places, width).transpose(1, 2)
        x = self.along(x.reshape(images * places, frames, width))
        return x.view(images, places * frames, width).mean(1)


def model(depth: int) -> nn.Module:
    made = Factorised(depth)
    randomise(made)
    return made.double().eval()


def test_a_stem_of_single_frames_leaves_the_frames() -> None:
    clips = model(1)
    x = torch.randn(2, 4, 3, 1, 2, dtype=torch.float64)
    x = x.repeat_interleave(16, 3).repeat_interleave(8, 4)
    fast = tome_fx.transform(clips, [4, 0], example_inputs=x)
    assert fast.schedule == (4, 0)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(clips, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


def test_a_stem_over_time_makes_places_of_frames() -> None:
    with pytest.raises(tome_fx.NoAttentionFoundError):
        tome_fx.transform(model(2), 4, example_inputs=torch.zeros(2, 8, 3, 16, 16).double())


class Summarised(Factorised):
    """Blocks within each frame, whose means attend to each other over time."""

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip.transpose(1, 2)).permute(0, 2, 3, 4, 1)
        inside = self.inside(x.flatten(0, 1).flatten(1, 2))
        frames: Tensor = self.along(inside.mean(1).unflatten(0, x.shape[:2]))
        return frames.mean(1)


def test_frames_of_a_stem_attend_to_each_other_behind_their_own_blocks() -> None:
    clips = Summarised(1)
    randomise(clips)
    clips = clips.double().eval()
    x = torch.randn(2, 2, 3, 1, 2, dtype=torch.float64)
    x = x.repeat_interleave(16, 3).repeat_interleave(8, 4).repeat_interleave(2, 1)
    fast = tome_fx.transform(clips, [4, 0, 2], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 0, 2)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(clips, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


class Alternating(nn.Module):
    """Attention within each frame and over all frames in turn; a token of its own in each frame."""

    table: Tensor | None = None

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.stem, self.fused = nn.Conv2d(3, 8, 4, 4), fused
        self.tokens = nn.Parameter(torch.zeros(1, 2, 1, 8))
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))

    def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        told = self.table is not None and self.table.shape[0] == x.shape[1]
        table = self.table if told else torch.zeros((), dtype=x.dtype)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v, table if told else None)
        else:
            y = (q @ k.mT + table).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2)

    def forward(self, clip: Tensor) -> Tensor:
        images, frames = clip.shape[:2]
        x = self.stem(clip.flatten(0, 1)).flatten(2).mT
        # The first frame has a token of its own kind.
        first = self.tokens[:, :1].expand(images, 1, 1, 8)
        rest = self.tokens[:, 1:].expand(images, frames - 1, 1, 8)
        x = torch.cat([torch.cat([first, rest], 1).view(images * frames, 1, 8), x], dim=1)
        for turn, (qkv, norm) in enumerate(zip(self.qkv, self.norms, strict=True)):
            _, places, width = x.reshape(images * frames, -1, 8).shape
            shape = (images, frames * places, width) if turn % 2 else (-1, places, width)
            x = x.reshape(shape)
            x = x + self.attended(norm(x), qkv)
        return x.view(images, frames, -1, 8)[:, :, 1:].mean(2)


def alternating(fused: bool) -> tuple[Alternating, Tensor]:
    """A model, and three clips of two frames of one colour each."""
    clips = Alternating(fused)
    randomise(clips)
    x = torch.randn(3, 2, 3, 1, 1, dtype=torch.float64).expand(-1, -1, -1, 8, 16)
    return clips.double().eval(), x.contiguous()


@pytest.mark.parametrize("fused", [True, False])
def test_attention_over_all_frames_sees_the_sizes_in_each(fused: bool) -> None:
    clips, x = alternating(fused)
    fast = tome_fx.transform(clips, [4, 0, 2, 0], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 0, 2, 0)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(clips, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


@pytest.mark.parametrize("fused", [True, False])
def test_the_same_places_of_all_frames_merge_behind_attention_over_all(fused: bool) -> None:
    """Each frame has its own token in front, so frames and places are no one row of tokens."""
    clips, x = alternating(fused)
    fast = tome_fx.transform(clips, [2, 2, 1, 1], example_inputs=x, min_ratio=0)
    assert fast.schedule == (2, 2, 1, 1)
    assert [block.tokens_in for block in fast.report.blocks] == [9, 7, 5, 4]
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_over_the_tokens_of_all_frames_makes_no_site(fused: bool) -> None:
    """It may say something else of a place in each frame."""

    class Masked(Alternating):
        def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
            q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            shown = (torch.arange(x.shape[1]) < 15)[None, None, None] & (
                x[:, None, None, :1, 0] < 9
            )
            if fused:
                y = nn.functional.scaled_dot_product_attention(q, k, v, shown)
            else:
                y = (q @ k.mT).masked_fill(~shown, -1e9).softmax(-1) @ v
            return y.transpose(1, 2).flatten(2)

    _, x = alternating(fused)
    clips = Masked(fused)
    randomise(clips)
    fast = tome_fx.transform(clips.double().eval(), 2, example_inputs=x, min_ratio=0)
    assert fast.schedule == (2, 2)
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    assert any("all frames" in miss.reason for miss in fast.report.near_misses)


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_a_table_over_the_tokens_of_all_frames_that_hides_gives_them_back(
    fused: bool, hides: bool
) -> None:
    """A bias has the rows and columns of representatives; what is hidden may be some of a group."""
    clips, x = alternating(fused)
    clips.table = torch.zeros(18, 18, dtype=torch.float64)
    clips.table[:9, 9:] = -1.5  # the first frame sees less of the second
    if hides:
        clips.table[:, [3, 12, 13]] = -1e9
    fast = tome_fx.transform(clips, [4, 0, 2, 0], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 0, 2, 0)
    given_back = [u for u in fast.report.unmerges if "of all frames" in u.reason]
    assert bool(given_back) == hides
    assert distance(run(fast, x), run(clips, x)) < 1e-9


# A table over the tokens of all frames, beside what stands there.
BESIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, table: x + table,
    "joined": lambda x, table: torch.cat([x, table.expand_as(x)], -1)[..., 8:] + x,
    "stacked": lambda x, table: torch.stack([x, table.expand_as(x)]).sum(0),
    "written": lambda x, table: x + x.slice_scatter(table.expand_as(x)[..., :4], 2, 0, 4),
    "scores": lambda x, table: x + torch.baddbmm(table @ table.mT, x, x.mT).tanh() @ x,
    "keys": lambda x, table: x + nn.functional.scaled_dot_product_attention(
        x, table.expand_as(x), x),
}  # fmt: skip


class Beside(Alternating):
    copies = False  # one for each image

    def __init__(self, op: str) -> None:
        super().__init__(fused=True)
        self.op = BESIDE[op]
        self.rows = nn.Parameter(torch.zeros(18, 8))

    def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
        y = super().attended(x, qkv)
        if x.shape[1] != 18:
            return y
        rows = self.rows.expand(len(x), 18, 8).clone() if self.copies else self.rows
        return self.op(y, rows)


@pytest.mark.few(2)
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("op", BESIDE)
def test_each_frame_has_the_rows_of_a_table_for_its_own_places(op: str, images: bool) -> None:
    """Above and below are two colours and have rows of their own, in each frame others."""
    clips = Beside(op)
    randomise(clips)
    clips.double().eval()
    rows = clips.rows.data[:6].unflatten(0, (2, 3)).repeat_interleave(4, 1)
    clips.rows.data = rows[:, 3:].flatten(0, 1)
    clips.copies = images
    x = torch.randn(3, 2, 3, 2, 1, dtype=torch.float64)
    x = x.repeat_interleave(4, 3).repeat_interleave(16, 4)
    fast = tome_fx.transform(clips, [4, 0, 2, 0], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 0, 2, 0)
    assert [u for u in fast.report.unmerges if u.op != "output"] == []
    assert distance(run(fast, x), run(clips, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(clips, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-9


class HiddenLast(Alternating):
    """Scores of heads last, or of keys first, of which some keys of one frame are hidden."""

    def __init__(self, keys_first: bool) -> None:
        super().__init__(fused=False)
        self.keys_first = keys_first
        self.hidden = torch.zeros(18, dtype=torch.bool)
        self.hidden[13:17] = True

    def attended(self, x: Tensor, qkv: nn.Module) -> Tensor:
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        hidden = self.hidden if x.shape[1] == 18 else torch.zeros(x.shape[1], dtype=torch.bool)
        if self.keys_first:
            scores = (k @ q.mT).masked_fill(hidden[:, None], -1e9).softmax(-2).mT
        else:
            scores = (q @ k.mT).permute(0, 2, 3, 1).masked_fill(hidden[None, :, None], -1e9)
            scores = scores.softmax(2).permute(0, 3, 1, 2)
        return (scores @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("keys_first", [False, True])
def test_a_mask_of_one_frame_in_other_layouts(keys_first: bool) -> None:
    _, x = alternating(fused=False)
    clips = HiddenLast(keys_first)
    randomise(clips)
    clips.double().eval()
    fast = tome_fx.transform(clips, [4, 2], example_inputs=x, min_ratio=0)
    assert fast.schedule == (4, 2)  # within frames
    assert distance(run(fast, x), run(clips, x)) < 1e-9
