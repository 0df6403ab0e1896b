"""Windows that stay apart between blocks: each merges its own tokens, as a frame of a clip does."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.framed import Made, classes_along_time, clip, made, of_equal_patches, transformed
from tests.laws.common import TINY, distance, run
from tests.windowed import (
    WINDOWED,
    Masked,
    classes_of_frames,
    in_levels,
    in_pairs,
    joint_in_rows,
    means_of_windows,
    place_by_place,
    products_between,
    products_in_the_batch,
    shifted,
    tiles,
    with_tables,
)
from tests.zoo.entry import randomise

pytestmark = TINY


@cache
def of_frames(like: Made, fused: bool) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model of frames, clips, and what it makes of them with merges, with its maps."""
    torch.manual_seed(0)
    model, x = made(like, fused), clip(4)
    fast = transformed(model, x)
    assert fast.schedule == (4, 0, 2)
    return model, x, run(fast, x), fast.token_map(x)


# In attention of three products too, where they say more than the call does.
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "fused"),
    [*((n, True) for n in WINDOWED), ("in_rows", False), ("joint", False)],
)
def test_windows_merge_as_frames_do(name: str, fused: bool) -> None:
    how, like, images_of = WINDOWED[name]
    other, frames, wanted, maps = of_frames(like, fused)
    model, x = made(how, fused), images_of(frames)
    model.load_state_dict(other.state_dict())
    assert distance(run(model, x), run(other, frames)) < 1e-12
    fast = transformed(model, x)
    assert fast.schedule == (4, 0, 2)
    assert distance(run(fast, x), wanted) < 1e-12
    assert distance(run(fast, x), run(model, x)) > 1e-6
    assert torch.equal(fast.token_map(x), maps)
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-12
    assert "each of the 4 windows" in fast.report.notes[0]
    fast.r = 0
    assert torch.equal(run(fast, x), run(model, x))


def test_frames_of_a_convolution_with_tokens_that_attend_along_time() -> None:
    model, frames = made(classes_of_frames), clip(4)
    x = in_pairs(frames)
    like = made(classes_along_time)
    like.load_state_dict(model.state_dict())
    options = {"r": [4, 0, 2, 1], "min_ratio": 0}
    fast = tome_fx.transform(model, example_inputs=x, **options)
    same = tome_fx.transform(like, example_inputs=frames, **options)
    assert fast.schedule == same.schedule == (4, 0, 2, 1)
    assert distance(run(fast, x), run(same, frames)) < 1e-12
    assert "each of the 4 windows" in fast.report.notes[0]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "how",
    [
        in_levels,
        with_tables,
        means_of_windows,
        shifted,
        joint_in_rows,
        products_between,
        products_in_the_batch,
    ],
)
def test_with_other_work_between_or_behind(how: Made) -> None:
    """A window decides by what it holds; equal patches in each window merge without a trace."""
    model = made(how)
    for table in (model.place, model.both, model.bias, model.frame):
        table.data.zero_()
    x = tiles(of_equal_patches(4))
    fast = transformed(model, x, (6, 0, 0))
    assert distance(run(fast, x), run(model, x)) < 1e-9
    other = tiles(clip(4))
    assert distance(run(fast, other), run(model, other)) > 1e-6
    assert distance(run(fast, other[:1]), run(fast, other)[:1]) < 1e-12
    changed = other.clone()
    changed[..., 16:, 16:] = torch.randn_like(changed[..., 16:, 16:])
    maps = fast.token_map(other), fast.token_map(changed)
    assert torch.equal(*(each[0][:, :3] for each in maps))
    assert not torch.equal(maps[0][0][:, 3], maps[1][0][:, 3])


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("fused", [True, False])
def test_windows_have_padding_of_their_own(fused: bool) -> None:
    model, other = Masked(True, fused), Masked(False, fused)
    randomise(model)
    other.load_state_dict(model.state_dict())
    model, other = model.double().eval(), other.double().eval()
    frames, real = clip(4), torch.ones(2, 4, 4, 4, dtype=torch.bool)
    real[0, 0, 3:], real[0, 2, :, 3:], real[1, 3, 2:] = False, False, False
    image, seen = tiles(frames), tiles(real[:, :, None])[:, 0]
    assert distance(model(image, seen), other(frames, real)) < 1e-12
    fast = tome_fx.transform(model, [2, 1, 1], example_inputs=(image, seen), min_ratio=0)
    same = tome_fx.transform(other, [2, 1, 1], example_inputs=(frames, real), min_ratio=0)
    assert distance(fast(image, seen), same(frames, real)) < 1e-12
    assert distance(fast(image, seen), model(image, seen)) > 1e-6
    hidden = torch.where(seen.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None], image, 9.0)
    assert distance(fast(hidden, seen), fast(image, seen)) < 1e-12


def test_windows_that_meet_place_by_place_are_none() -> None:
    """What attends along the windows has tokens of its own: the windows."""
    model = made(place_by_place)
    one = clip(1)
    x = tiles(one.expand(-1, 4, -1, -1, -1))
    fast = transformed(model, x, (1,))
    assert fast.schedule == (1,)
    assert distance(run(fast, x), run(model, x)) < 1e-9
