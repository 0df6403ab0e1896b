"""What becomes of values that an op told apart within a group: averaged, or all tokens again."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.rules.common import images
from tests.zoo.entry import randomise

pytestmark = TINY
LABELS = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)


def xcit(silent: bool = False) -> nn.Module:
    """Cross-covariance attention, and a convolution over the grid in each block."""
    model = timm.create_model("xcit_nano_12_p16_224", depth=3, embed_dim=32, num_heads=2)
    randomise(model)
    if silent:
        for block in model.blocks:
            nn.init.zeros_(block.local_mp.conv1.weight)
    return model.double().eval()


def flat() -> Tensor:
    """One colour an image: the patches inside, where padding is far, are duplicates."""
    return torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 224, 224).contiguous()


def kinds(fast: Any) -> set[str]:
    return {u.kind for u in fast.report.unmerges if u.op != "output"}


def test_cross_covariance_attention_is_exact_without_its_convolutions() -> None:
    model, x = xcit(silent=True), flat()
    fast = tome_fx.transform(model, 4, example_inputs=x)
    assert fast.schedule == (4, 4, 4)
    assert [block.kind for block in fast.report.blocks] == ["contraction"] * 3
    assert distance(run(fast, x), run(model, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(model, other)) > 1e-6


def test_what_each_block_tells_apart_comes_back_in_one_merge() -> None:
    """However many merges there were before: one of the stream, one of the convolution's."""
    counts = []
    for depth in (3, 6):
        model = timm.create_model("xcit_nano_12_p16_224", depth=depth, embed_dim=32, num_heads=2)
        fast = tome_fx.transform(model.eval(), 4)
        calls = [node.target for node in fast.graph.nodes if node.op == "call_function"]
        merges = (tome_fx.ops.merge, tome_fx.ops.merge_norm)
        counts.append((sum(map(calls.count, merges)), calls.count(tome_fx.ops.compose_plans)))
    assert counts == [(2 * 3, 2), (2 * 6, 5)]


def test_averaging_is_listed_and_never_is_exact() -> None:
    model, x = xcit(), flat()
    mean = tome_fx.transform(model, 4, example_inputs=x)
    assert kinds(mean) == {"unmerge", "merge"}
    assert distance(run(mean, x), run(model, x)) > 1e-6
    never = tome_fx.transform(model, 4, example_inputs=x, remerge="never")
    assert kinds(never) == {"unmerge"}
    assert distance(run(never, x), run(model, x)) < 1e-9
    # Each site starts from all tokens again, and the report has what is there.
    assert [(b.tokens_in, b.tokens_out) for b in never.report.blocks] == [(196, 192)] * 3
    assert [b.tokens_in for b in mean.report.blocks] == [196, 192, 188]
    assert never.token_map(x).amax((1, 2)).tolist() == [191, 191, 191]


class Dense(nn.Module):
    """A head that adds what a convolution made of late tokens to earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)
        )
        self.side, self.mix = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        first = self.blocks[0](x.flatten(2).transpose(1, 2))
        second = self.blocks[1](first)
        early, late = (t.transpose(1, 2).unflatten(2, x.shape[2:]) for t in (first, second))
        return self.mix(self.side(early) + self.mix(late))


def test_a_dense_head_gets_all_tokens_where_nothing_is_gained_by_averaging() -> None:
    model, x = Dense().double().eval(), images(LABELS)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert kinds(fast) == {"unmerge"}
    assert distance(run(fast, x), run(model, x)) < 1e-9


class Between(nn.Module):
    """A convolution over the grid between blocks whose tokens stand on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def attend(self, layer: nn.Module, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = layer(x.permute(0, 2, 3, 1)).reshape(b, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        return y.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for layer in self.qkv:
            x = x + self.attend(layer, x)
            x = x + self.mix(x).sin()
        return x.mean((2, 3))


@pytest.mark.parametrize("schedule", [[3, 0, 0], [2, 2, 2]])
def test_never_on_a_grid(schedule: list[int]) -> None:
    """Only the first match sees duplicates here, so with later ones the law says nothing."""
    model, x = Between().double().eval(), images(LABELS)
    fast = tome_fx.transform(model, schedule, example_inputs=x, remerge="never")
    assert list(fast.schedule) == schedule
    gap = distance(run(fast, x), run(model, x))
    assert gap < 1e-9 if sum(schedule[1:]) == 0 else gap < 1.0
    assert kinds(fast) == {"unmerge"}
    mean = tome_fx.transform(model, schedule, example_inputs=x)
    assert kinds(mean) == {"unmerge", "merge"}
    assert distance(run(mean, x), run(model, x)) > 1e-6


def test_another_word() -> None:
    with pytest.raises(tome_fx.ConfigError, match="remerge='always' is not one of"):
        tome_fx.transform(xcit(), 2, remerge="always")


class Detail(nn.Module):
    """What a convolution made of the grid before any merge, added behind all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fine = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.qkv, self.mlp, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.stem(image)
        x, fine = (value.flatten(2).transpose(1, 2) for value in (grid, self.fine(grid)))
        x = x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
        x = x + self.mlp(x)
        return self.head(x + fine)  # type: ignore[no-any-return]


@pytest.mark.parametrize("remerge", ["mean", "never"])
def test_detail_from_before_the_merges_is_not_averaged_unseen(remerge: Any) -> None:
    model, x = Detail(), images(LABELS, batch=2)
    randomise(model)
    model.double().eval()
    fast = tome_fx.transform(model, 6, example_inputs=x, remerge=remerge)
    assert sum(fast.schedule) == 6
    assert distance(run(fast, x), run(model, x)) < 1e-9
    assert "told apart within a group" in str(fast.report)
