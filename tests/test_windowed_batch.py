"""Windows that stand in the batch between the blocks, with global attention in some of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY
C, H, SIDE, WINDOWS = 16, 2, 8, 2


class Layer(nn.Module):
    """Attention inside windows or over all of them; the residual stays in windows (LW-DETR)."""

    def __init__(self, is_global: bool) -> None:
        super().__init__()
        self.is_global = is_global
        self.norm, self.qkv, self.out = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        if self.is_global:
            y = y.reshape(b // WINDOWS**2, WINDOWS**2 * n, C)
        q, k, v = self.qkv(y).unflatten(-1, (3, H, C // H)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y).reshape(b, n, C)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Windowed(nn.Module):
    def __init__(self, *is_global: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Conv2d(C, 5, 1)
        self.layers = nn.ModuleList(map(Layer, is_global))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        b, side = x.shape[0], SIDE // WINDOWS
        x = x.reshape(b, C, WINDOWS, side, WINDOWS, side).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(b * WINDOWS**2, side * side, C)
        for layer in self.layers:
            x = layer(x)
        x = x.reshape(b, WINDOWS, WINDOWS, side, side, C).permute(0, 5, 1, 3, 2, 4)
        return self.head(x.reshape(b, C, SIDE, SIDE))  # type: ignore[no-any-return]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("kinds", "r"), [((True, True, True), 6), ((False, True, False, True), 3), ((False, False), 3)]
)
def test_global_attention_between_windows_in_the_batch(kinds: tuple[bool, ...], r: int) -> None:
    """The tokens of all windows merge as one row, or each window by itself if more blocks can."""
    model = Windowed(*kinds).double().eval()
    randomise(model)
    x = torch.randn(3, 3, 2 * SIDE, 2 * SIDE).double()
    fast = tome_fx.transform(model, r, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (r,) * len(kinds)
    own = any("each of the 4 windows" in note for note in fast.report.notes)
    assert own == (not all(kinds))
    back = [item for item in fast.report.unmerges if item.kind == "unmerge"]
    assert len(back) == 1, [(item.op, item.reason) for item in back]
    assert distance(run(fast, x), run(model, x)) > 1e-6
    assert distance(run(fast, x)[:2], run(fast, x[:2])) < 1e-12
    colour = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    halves = torch.cat([colour[..., :SIDE], -2 * colour[..., SIDE:]], -1)
    fast.r = [r] + [0] * (len(kinds) - 1)
    assert distance(run(fast, halves), run(model, halves)) < 1e-9
    fast.r = 0
    assert distance(run(fast, x), run(model, x)) == 0.0
