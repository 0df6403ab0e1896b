"""Clips whose frames merge by themselves: masks, options, and what runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tome_fx
from tests.compiling.common import backend
from tests.framed import (
    ALONE,
    HEADS,
    Blocks,
    all_in_one_row,
    clip,
    in_the_batch,
    made,
    of_equal_patches,
    transformed,
)
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY


def masked(m: Blocks, clip: Tensor, mask: Tensor) -> Tensor:
    x = m.tokens(clip.flatten(0, 1))
    hidden = torch.where(mask.flatten(0, 1), 0.0, -torch.inf)[:, None, None].to(x.dtype)
    for i in range(3):
        x = m.block(i, x, hidden)
    return x.unflatten(0, clip.shape[:2])


@pytest.mark.few(1)
@pytest.mark.parametrize("fused", [True, False])
def test_padding_of_a_frame_is_its_own(fused: bool) -> None:
    """What is hidden in one frame never reaches a token that is seen, there or elsewhere."""

    class Masked(Blocks):
        def forward(self, clip: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return masked(self, clip, mask)

    model = Masked(in_the_batch, fused)
    randomise(model)
    model, x = model.double().eval(), clip()
    mask = torch.ones(2, 3, 17, dtype=torch.bool)
    mask[:, 1, 9:], mask[0, 2, 13:] = False, False
    fast = tome_fx.transform(model, 3, example_inputs=(x, mask), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    other = x.clone()
    other[:, 1, :, 8:], other[0, 2, :, 12:] = 5.0, 7.0
    with torch.no_grad():
        moved = (fast(x, mask) - fast(other, mask))[mask]
    assert float(moved.abs().max()) < 1e-12


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "of the clip": lambda shown: shown[:, None, None, None],
    "of each head": lambda shown: shown[:, None, None, None].expand(-1, -1, HEADS, -1, -1),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_masks_that_are_not_of_frames(name: str, given: bool) -> None:
    """There are as many heads as frames, and nothing but its place says what an axis is."""

    class Masked(Blocks):
        def forward(self, clip: Tensor, shown: Tensor) -> Tensor:  # type: ignore[override]
            x = self.tokens(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
            hidden = torch.where(shown if given else OTHERS[name](shown), 0.0, -torch.inf)
            for i in range(3):
                x = self.block(i, x, hidden.to(x.dtype))
            return x

    model = Masked(in_the_batch, True)
    randomise(model)
    model, x = model.double().eval(), clip(HEADS)
    real = torch.ones(2, 17, dtype=torch.bool)
    real[0, 9:], real[1, 13:] = False, False
    shown = OTHERS[name](real).clone() if given else real
    fast = tome_fx.transform(model, 3, example_inputs=(x, shown), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    assert not [u for u in fast.report.unmerges if u.kind == "unmerge" and u.op != "output"]
    other = x.clone()
    other[0, :, :, 8:], other[1, :, :, 12:] = 5.0, 7.0
    seen = real[:, None].expand(-1, HEADS, -1)
    with torch.no_grad():
        moved = (fast(x, shown) - fast(other, shown))[seen]
    assert float(moved.abs().max()) < 1e-12


class Tiles(Blocks):
    """Attention over all tiles, whose rows have padding at their ends that does not see itself."""

    def forward(self, clip: Tensor, shown: Tensor) -> Tensor:  # type: ignore[override]
        images, tiles = clip.shape[:2]
        x = F.pad(self.tokens(clip.flatten(0, 1)), (0, 0, 0, 3)).unflatten(0, (images, tiles))
        real = shown[:, :, None, None].expand(-1, -1, x.shape[2], -1).to(x.dtype)
        real = torch.cat([real[:, :, :17], torch.zeros_like(real[:, :, 17:])], 2)
        padding = (1 - real).flatten(1, 2)
        mask = (padding @ padding.mT * torch.finfo(x.dtype).min)[:, None]
        x = x.flatten(1, 2)
        for i in range(2):
            x = self.block(i, x, mask)
        x = x.unflatten(1, (tiles, -1)) + self.frame
        return self.block(2, x.flatten(1, 2), mask).unflatten(1, (tiles, -1))[:, :, :17]


@pytest.mark.parametrize("fused", [True, False])
def test_tiles_that_attend_to_each_other_alone(fused: bool) -> None:
    """As in Llama's vision tower: no attention within a tile says what its tokens are."""
    model = Tiles(in_the_batch, fused)
    randomise(model)
    model, x = model.double().eval(), of_equal_patches()
    model.place.data.zero_()
    shown = torch.tensor([[1, 1, 1], [1, 0, 1]])
    fast = tome_fx.transform(model, [6, 0, 0], example_inputs=(x, shown), min_ratio=0)
    assert fast.schedule == (6, 0, 0)
    assert {u.kind for u in fast.report.unmerges if u.op != "output"} <= {"merge"}
    with torch.no_grad():
        assert distance(fast(x, shown), model(x, shown)) < 1e-9
        assert distance(fast(x[1:], shown[1:]), fast(x, shown)[1:]) < 1e-12


def test_what_runs_and_leaves_is_the_same() -> None:
    """Compiled, exported, with another number of images, and without merges."""
    model, x = made(all_in_one_row), clip()
    fast = transformed(model, x)
    wanted = run(fast, torch.cat([x, x.flip(0)]))
    program = torch.export.export(
        fast, (x,), dynamic_shapes=({0: torch.export.Dim("images", min=1, max=64)},)
    )
    assert distance(run(program.module(), torch.cat([x, x.flip(0)])), wanted) < 1e-12
    assert distance(run(transformed(model, x, (0, 0, 0)), x), run(model, x)) < 1e-12
    compiled = torch.compile(model, backend=backend([4, 0, 2]))
    with torch.no_grad():
        assert distance(compiled(x), wanted[:2]) < 1e-12


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["in_the_batch", "with_tables", "all_in_one_row", "side_by_side"])
def test_a_program_for_one_image_has_its_frames(name: str) -> None:
    model, x = made(ALONE[name]), clip()
    one = tome_fx.transform(torch.export.export(model, (x[:1],)), [4, 0, 2], min_ratio=0)
    assert one.token_map(x[:1]).shape == (3, 1, 3, 16)
    assert torch.equal(run(one, x[:1]), run(transformed(model, x), x[:1]))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("with_tables", {"remerge": "never"}),
        ("all_in_one_row", {"prop_attn": False}),
        ("side_by_side", {"scatter": False}),
    ],
)
def test_options(name: str, options: dict[str, Any]) -> None:
    model, x = made(ALONE[name]), clip()
    fast = transformed(model, x, **options)
    assert fast.schedule == (4, 0, 2)
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-12


def test_a_matching_of_ones_own_is_asked_for_each_frame() -> None:
    model, x, seen = made(all_in_one_row), clip(), []

    def first(keys: Tensor, x: Tensor, size: Tensor, position: Tensor, r: int) -> Any:
        seen.append([t.shape[0] for t in (keys, x, size, position)])
        rows, tokens = x.shape[:2]
        return (torch.arange(r).expand(rows, r), torch.arange(tokens - r, tokens).expand(rows, r))

    fast = transformed(model, x, matching=first)
    run(fast, x)
    assert seen[-1] == [6, 6, 6, 6]
    assert distance(run(fast, x[:1]), run(fast, x)[:1]) < 1e-12


def pair(m: Blocks, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Two images side by side, taken apart to attend to each other, as in matching and stereo."""
    first, second = m.block(0, m.tokens(torch.cat([clip[:, 0], clip[:, 1]]))).chunk(2)
    for _ in range(2):
        first, second = m.block(1, first), m.block(1, second)
        both = torch.cat([first, second], 1)
        first, second = m.block(2, both).split([17, 17], 1)
    return first, second


def test_a_pair_merges_in_front_of_where_it_is_taken_apart() -> None:
    model, x = Blocks(in_the_batch, True), clip(2)
    model.made = pair  # type: ignore[assignment]
    randomise(model)
    fast = tome_fx.transform(model.double().eval(), 2, example_inputs=x, min_ratio=0)
    assert fast.schedule[0] == 2
    assert len(fast.schedule) > 4
    changed = torch.stack([x[:, 0], torch.randn_like(x[:, 1])], 1)
    before, after = (fast.token_map(each)[0] for each in (x, changed))
    assert before.shape == (2, 2, 16)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])
    with torch.no_grad():
        assert distance(fast(x[:1])[1], fast(x)[1][:1]) < 1e-12
