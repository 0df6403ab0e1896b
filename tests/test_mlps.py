"""Which linears are the MLP of a block, where a text is looked at too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images

pytestmark = TINY


class Layer(nn.Module):
    """Self-attention, attention to a text and an MLP, one after another or side by side."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self.attention, self.cross = (
            nn.MultiheadAttention(32, 2, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        if self.parallel:
            return x + self.attention(x, x, x)[0] + self.cross(x, text, text)[0] + self.mlp(x)  # type: ignore[no-any-return]
        x = x + self.attention(x, x, x)[0]
        x = x + self.cross(x, text, text)[0]
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Patches that look at a text, as those of diffusion transformers do."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 16, 16)
        self.layers = nn.ModuleList(Layer(parallel) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, text)
        return x


@pytest.mark.parametrize("parallel", [False, True])
def test_the_mlp_of_a_block_is_not_its_attention_to_a_text(parallel: bool) -> None:
    report = tome_fx.explain(
        Decoder(parallel).eval(), 1, example_inputs=(images(), torch.randn(2, 5, 32)), min_ratio=0
    )
    found = [(block.attention, block.mlp) for block in report.blocks]
    assert found == [(f"layers.{i}.attention", f"layers.{i}.mlp") for i in range(2)]
    assert report.blocks[0].macs_before == report.blocks[1].macs_before
