"""A skip from before the merges: joined behind the last block, or before work on the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.rules.common import images
from tests.zoo.entry import randomise

pytestmark = TINY
C = 8
LABELS = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)


def blocks(count: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(C, 2, 16, 0.0, batch_first=True) for _ in range(count)
    )


class Late(nn.Module):
    """The map goes around all blocks, and is joined to what a projection made of their tokens."""

    def __init__(self, join: str, projection: str) -> None:
        super().__init__()
        self.join, self.projection = join, projection
        self.stem, self.blocks, self.norm = nn.Conv2d(3, C, 2, 2), blocks(2), nn.LayerNorm(C)
        self.out = nn.Linear(C, C) if projection == "linear" else nn.Conv2d(C, C, 1)

    def forward(self, image: Tensor) -> Tensor:
        residual = self.stem(image)
        x = residual.flatten(2).mT
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.projection == "linear":
            x = self.out(x)
        x = x.mT.unflatten(2, residual.shape[2:])
        if self.projection != "linear":
            x = self.out(x)
        return torch.cat([x, residual], 1) if self.join == "cat" else residual + x


@pytest.mark.few(3)
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize("projection", ["linear", "convolution"])
@pytest.mark.parametrize("join", ["add", "cat"])
def test_a_skip_at_the_very_end_keeps_its_detail(join: str, projection: str, remerge: Any) -> None:
    model, x = Late(join, projection), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    randomise(model)
    model.double().eval()
    fast = tome_fx.transform(model, 3, example_inputs=x, remerge=remerge)
    assert fast.schedule == (3, 3)
    assert [u.kind for u in fast.report.unmerges] == ["unmerge"]
    assert "no work is left behind it" in fast.report.unmerges[0].reason
    # Detail is what the tokens of one group differ by: what the blocks made is one value for all.
    result, residual = run(fast, x), run(model.stem, x)
    own = result[:, :C] if join == "cat" else result - residual
    slots = fast.token_map(x)[-1].reshape(3, 4, 4)
    for image, slot in zip(own, slots, strict=True):
        for group in slot.unique():
            rows = image[:, slot == group]
            assert (rows - rows[:, :1]).abs().max() < 1e-9
    if join == "cat":
        assert torch.equal(result[:, C:], residual)


class Early(nn.Module):
    """Skips that are joined before more work: a block, a linear, a head on all channels."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self.behind, self.stem, self.blocks = behind, nn.Conv2d(3, C, 2, 2), blocks(3)
        self.narrow = nn.Linear(2 * C, C)

    def forward(self, image: Tensor) -> Tensor:
        x = skip = self.stem(image).flatten(2).mT
        x = self.blocks[1](self.blocks[0](x))
        if self.behind == "block":
            return self.blocks[2](x + skip)  # type: ignore[no-any-return]
        if self.behind == "linear":
            return self.narrow(torch.cat([x, skip], -1))  # type: ignore[no-any-return]
        return (x + skip).sin().mean(1)


@pytest.mark.parametrize("behind", ["block", "linear", "pool"])
def test_a_skip_before_more_work_is_averaged_and_listed(behind: str) -> None:
    model, x = Early(behind), images(LABELS, batch=3)
    randomise(model)
    model.double().eval()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    found = [u for u in fast.report.unmerges if u.op != "output"]
    assert [u.kind for u in found] == ["merge"]
    assert found[0].reason == "tokens from before a merge are averaged in each group"
    assert distance(run(fast, x), run(model, x)) < 1e-9
    other = torch.randn_like(x)
    assert distance(run(fast, other), run(model, other)) > 1e-6
