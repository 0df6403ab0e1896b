"""Frames, views and crops of a sample that never meet place by place: each merges as an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tome_fx
from tests.framed import (
    ALONE,
    Blocks,
    C,
    Made,
    clip,
    in_the_batch,
    made,
    of_equal_patches,
    on_an_axis,
    transformed,
)
from tests.laws.common import TINY, distance, run

pytestmark = TINY


# In attention of three products too, where they say more than the call does.
WRITTEN = ("on_an_axis", "with_tables", "all_in_one_row", "side_by_side")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "fused"),
    [*((name, True) for name in ALONE), *((name, False) for name in WRITTEN)],
)
def test_each_frame_merges_its_own_tokens(name: str, fused: bool) -> None:
    """Positions are zero here, so that equal patches are equal tokens."""
    model, x = made(ALONE[name], fused), of_equal_patches()
    for table in (model.place, model.both, model.bias):
        table.data.zero_()
    fast = transformed(model, x, (6, 0, 0, 0))
    assert fast.schedule[:3] == (6, 0, 0)
    assert distance(run(fast, x), run(model, x)) < 1e-9
    other = clip()
    assert distance(run(fast, other), run(model, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-12


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ALONE)
def test_a_frame_says_nothing_of_what_merges_in_another(name: str) -> None:
    """Tables and all: what a frame holds decides about its own tokens alone."""
    model, x = made(ALONE[name]), clip()
    fast = transformed(model, x)
    changed = x.clone()
    changed[:, 1] = torch.randn_like(x[:, 1])
    maps = fast.token_map(x), fast.token_map(changed)
    assert maps[0].shape[1:] == (2, 3, 16)
    first = [each[0][:, [0, 2]] for each in maps]
    assert torch.equal(*first)
    assert not torch.equal(maps[0][:, :, 1], maps[1][:, :, 1])


def test_a_clip_is_its_frames_by_themselves() -> None:
    class One(nn.Module):
        def __init__(self, model: Blocks) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            x = self.model.tokens(images)
            for i in range(3):
                x = self.model.block(i, x)
            return x

    model, x = made(in_the_batch), clip()
    fast, one = transformed(model, x), transformed(One(model), x[0])
    (note,) = fast.report.notes
    assert "each of the 3 frames" in note
    assert one.report.notes == ()
    assert distance(run(fast, x).flatten(0, 1), run(one, x.flatten(0, 1))) < 1e-12


def shifted(m: Blocks, clip: Tensor) -> Tensor:
    """Tokens of the frame before, between blocks."""
    x = on_an_axis(m, clip)
    return m.block(0, x + x.roll(1, 1))


def along_time(m: Blocks, clip: Tensor) -> Tensor:
    """Each place attends along time, as in TimeSformer; then each frame within itself."""
    x = m.block(0, m.tokens(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])
    x = m.block(1, x.transpose(1, 2)).transpose(1, 2)
    return m.block(2, x)


def averaged_between(m: Blocks, clip: Tensor) -> Tensor:
    x = m.block(0, m.tokens(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])
    return m.block(1, x + x.mean(1, keepdim=True))


def normed_over_time(m: Blocks, clip: Tensor) -> Tensor:
    x = m.block(0, m.tokens(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])
    return m.block(1, x.softmax(1))


def pooled_over_time(m: Blocks, clip: Tensor) -> Tensor:
    """An op that no tokens are known behind, with frames merged or not."""
    x = m.block(0, m.tokens(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])
    rows = x.permute(0, 2, 3, 1).flatten(0, 1)
    pooled = F.avg_pool1d(rows, 3, 1, 1).unflatten(0, (len(x), -1)).permute(0, 3, 1, 2)
    return m.block(1, x + pooled)


def flipped_behind(m: Blocks, clip: Tensor) -> Tensor:
    """Frames meet behind the last merge, and there is work behind."""
    x = m.block(1, m.block(0, m.tokens(clip.flatten(0, 1)))).unflatten(0, clip.shape[:2])
    x = x + x.flip(1)
    return x + m.mlps[2](x).tanh()


def with_a_token_of_the_clip(m: Blocks, clip: Tensor) -> Tensor:
    """In front of the rows of all frames, which have a class token each."""
    x = m.block(0, m.tokens(clip.flatten(0, 1))).view(len(clip), -1, C)
    x = m.block(1, torch.cat([2 * m.cls.expand(len(clip), -1, -1), x], 1))
    y = m.block(2, x[:, 1:].reshape(-1, 17, C)).view(len(clip), -1, C)
    return torch.cat([x[:, :1], y], 1)


def to_all_frames(m: Blocks, clip: Tensor) -> Tensor:
    """The queries of each frame look at the tokens of all of them."""
    x = m.block(0, m.tokens(clip.flatten(0, 1)))
    keys = x.view(len(clip), -1, C).repeat_interleave(clip.shape[1], 0)
    x = m.block(1, x + F.scaled_dot_product_attention(x, keys, keys))
    return x.unflatten(0, clip.shape[:2])


MIXED: dict[str, Made] = {
    made.__name__: made for made in (shifted, along_time, averaged_between, normed_over_time,
                                     pooled_over_time, flipped_behind,
        with_a_token_of_the_clip, to_all_frames)
}  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MIXED)
def test_frames_that_meet_place_by_place_merge_there(name: str) -> None:
    """The same places of all frames: a map for each image, and exact where these are equal."""
    model = made(MIXED[name])
    x = of_equal_patches()[:, :1].expand(-1, 3, -1, -1, -1).contiguous()
    x = x + torch.randn(2, 3, 3, 1, 1, dtype=torch.float64)
    for table in (model.place, model.both, model.bias):
        table.data.zero_()
    three = ("along_time", "with_a_token_of_the_clip", "to_all_frames")
    depth = 4 if name == "shifted" else 3 if name in three else 2
    fast = tome_fx.transform(model, [6] + [0] * (depth - 1), example_inputs=x, min_ratio=0)
    assert fast.token_map(x).shape == (depth, 2, 16)
    assert any("the same places of all 3 frames" in note for note in fast.report.notes)
    assert distance(run(fast, x), run(model, x)) < 1e-9
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-12
