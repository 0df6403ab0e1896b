"""Attention that is not over one row of all tokens: in frames, in windows, over pooled keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import distance, run
from tests.rules.common import TINY
from tests.tiny import images as tiny_images
from tests.tiny import tiny
from tests.zoo.entry import randomise

pytestmark = TINY
GRID, FRAMES, WIDTH = 4, 3, 8


def attend(x: Tensor, qkv: nn.Linear) -> Tensor:
    """One head over the second to last axis."""
    q, k, v = qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


class Divided(nn.Module):
    """A clip: attention along time, then within each frame; one row of tokens in between."""

    def __init__(self, class_token: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.along = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.within = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)) for _ in range(2)
        )
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if class_token else None
        self.time = nn.Parameter(torch.randn(1, 1, FRAMES, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.stem(clip.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = x.unflatten(0, (-1, FRAMES)).transpose(1, 2) + self.time
        x = x.flatten(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        front = 0 if self.token is None else 1
        for along, within, mlp in zip(self.along, self.within, self.mlp, strict=True):
            patches = x[:, front:].unflatten(1, (-1, FRAMES))
            rows = attend(patches.flatten(0, 1), along).reshape(x.shape[0], -1, WIDTH)
            patches = x[:, front:] + rows
            frames = patches.unflatten(1, (-1, FRAMES)).transpose(1, 2).flatten(0, 1)
            seen = attend(frames, within).unflatten(0, (-1, FRAMES)).transpose(1, 2).flatten(1, 2)
            x = torch.cat([x[:, :front], patches], 1)
            x = x + torch.cat([x[:, :front], seen], 1)
            x = x + mlp(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("class_token", [True, False])
def test_divided_attention_merges_places_for_all_frames(class_token: bool) -> None:
    model = Divided(class_token)
    randomise(model)
    model.double().eval()
    noise = torch.randn(2, FRAMES, 3, 2 * GRID, 2 * GRID).double()
    colour = noise[:, :, :, :1, :1].expand_as(noise).contiguous()
    fast = tome_fx.transform(model, 3, example_inputs=noise)
    assert fast.schedule == (3, 3)
    assert not fast.report.unmerges
    assert [b.tokens_in - b.tokens_out for b in fast.report.blocks] == [3, 3]
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    assert distance(run(fast, noise)[:1], run(fast, noise[:1])) < 1e-12


class Pooled(nn.Module):
    """Keys and queries convolved on the grid, as in multiscale vision transformers."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.pool_q = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH, padding_mode="circular")
        self.pool_kv = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 2, 2)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for _ in range(2):
            q = self.on_grid(self.pool_q, self.q(x))
            k, v = self.on_grid(self.pool_kv, self.kv(x)).chunk(2, -1)
            x = x + (q + F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
            x = x + self.mlp(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]

    def on_grid(self, op: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = op(x.transpose(1, 2).unflatten(2, (GRID, GRID)))
        return result.flatten(2).transpose(1, 2)


def made(model: nn.Module) -> Any:
    randomise(model)
    return model.double().eval()


def test_pooled_keys_leave_the_mlp_merged() -> None:
    model, noise = made(Pooled()), torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=noise)
    assert fast.schedule == (3, 3)
    assert [block.kind for block in fast.report.blocks] == ["inner", "inner"]
    assert {u.kind for u in fast.report.unmerges} == {"unmerge", "merge"}
    colour = noise[..., :1, :1].expand_as(noise).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    fast.r = 0
    assert torch.equal(run(fast, noise), run(model, noise))


class Gridded(nn.Module):
    """The same with a residual that stays on the grid, channels first or last (CvT)."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last, self.stem = last, nn.Conv2d(3, WIDTH, 2, 2)
        self.q = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH, padding_mode="circular")
        self.kv, self.head = nn.Conv2d(WIDTH, 2 * WIDTH, 2, 2), nn.Linear(WIDTH, 5)
        self.mlp = nn.Sequential(nn.Conv2d(WIDTH, 16, 1), nn.GELU(), nn.Conv2d(16, WIDTH, 1))
        self.rows = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = x.permute(0, 2, 3, 1) if self.last else x
        for _ in range(2):
            grid = x.permute(0, 3, 1, 2) if self.last else x
            q, kv = self.q(grid).flatten(2).mT, self.kv(grid).flatten(2).mT
            y = F.scaled_dot_product_attention(q, *kv.chunk(2, -1)).mT.unflatten(2, (GRID, GRID))
            x = x + (y.permute(0, 2, 3, 1) if self.last else y)
            x = x + (self.rows if self.last else self.mlp)(x)
        return self.head(x.mean((1, 2) if self.last else (2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("last", [False, True])
def test_a_residual_on_the_grid(last: bool) -> None:
    model, noise = made(Gridded(last)), torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=noise)
    assert fast.schedule == (3, 3)
    assert [(block.kind, block.mlp) for block in fast.report.blocks] == (
        [("inner", "rows")] * 2 if last else [("inner", "mlp")] * 2
    )
    colour = noise[..., :1, :1].expand_as(noise).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    assert distance(run(fast, noise)[:1], run(fast, noise[:1])) < 1e-12
    fast.r = 0
    assert torch.equal(run(fast, noise), run(model, noise))


def test_its_tokens_are_matched_by_the_residual_value() -> None:
    """Two pairs of equal patches, and nothing else alike: these merge, whatever the keys are."""
    model, x = made(Pooled()), torch.randn(1, 3, 2 * GRID, 2 * GRID).double()
    nn.init.zeros_(model.pool_q.weight)
    nn.init.zeros_(model.kv.weight)
    for source, target in ((0, 1), (6, 7)):
        a, b = divmod(source, GRID), divmod(target, GRID)
        x[..., 2 * b[0] : 2 * b[0] + 2, 2 * b[1] : 2 * b[1] + 2] = x[
            ..., 2 * a[0] : 2 * a[0] + 2, 2 * a[1] : 2 * a[1] + 2
        ]
    fast = tome_fx.transform(model, (2, 0), example_inputs=x)
    slots = fast.token_map(x)[0, 0]
    assert slots[0] == slots[1]
    assert slots[6] == slots[7]


def test_causal_attention_is_still_refused() -> None:
    x = torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    with pytest.raises(tome_fx.NoAttentionFoundError):
        tome_fx.transform(made(Pooled(causal=True)), 3, example_inputs=x)


class Row(nn.Module):
    """Images packed in one row, behind one another, with a batch axis of 1 around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        row = torch.cat([image.flatten(1).T for image in self.stem(images)])[None]
        for block in self.blocks:
            row = row + attend(row, block)
        return self.head(row.mean(1))  # type: ignore[no-any-return]


def test_one_image_in_a_row_of_its_own() -> None:
    model, noise = made(Row()), torch.randn(1, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=noise)
    assert fast.schedule == (3, 3)
    assert "fixes the batch at 1" in str(fast.report)
    colour = noise[..., :1, :1].expand_as(noise).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    with pytest.raises(tome_fx.ShapeError, match="a batch of 2"):
        fast(torch.cat([noise, noise]))


def test_several_images_that_look_at_each_other_in_one_row() -> None:
    """The model's code takes them for one: each merges by itself, and all are one program's."""
    model, noise = made(Row()), torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=noise)
    assert fast.schedule == (3, 3, 3, 3)
    for once in fast.token_map(noise)[:, 0]:
        assert len(once) == GRID * GRID
    colour = noise[..., :1, :1].expand_as(noise).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    assert distance(run(fast, noise), run(model, noise)) > 1e-6
    with pytest.raises(tome_fx.ShapeError, match="that shape alone"):
        fast(noise[:1])


def test_a_program_exported_for_one_image() -> None:
    model, x = tiny(), tiny_images()
    one = torch.export.export(model, (x[:1],))
    fast = tome_fx.transform(one, 2)
    assert sum(fast.schedule) > 0
    assert not fast.report.unmerges
    usual = tome_fx.transform(model, 2, example_inputs=x)
    assert torch.equal(run(fast, x[:1]), run(usual, x[:1]))
