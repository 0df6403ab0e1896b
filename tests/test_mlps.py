"""Which linears are the MLP of a block, where a text is looked at too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

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


class Written(nn.Module):
    """An MLP by products with its weights."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.added = added
        self.into, self.out = (nn.Parameter(torch.randn(*s)) for s in ((32, 64), (64, 32)))
        self.bias = nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        if self.added:
            rows = torch.addmm(self.bias, x.flatten(0, 1), self.into).relu() @ self.out
            return rows.unflatten(0, x.shape[:2])
        return (x @ self.into + self.bias).relu() @ self.out


@pytest.mark.parametrize("added", [False, True])
def test_products_with_weights_are_linears(added: bool) -> None:
    model = Decoder(parallel=False).eval()
    for layer in model.layers:
        layer.mlp = Written(added)
    given = (images(), torch.randn(2, 5, 32))
    report = tome_fx.explain(model, 1, example_inputs=given, min_ratio=0)
    assert [block.mlp for block in report.blocks] == [f"layers.{i}.mlp" for i in range(2)]


class Mixed(nn.Module):
    """Tokens that a matrix mixes, in front of each MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.register_buffer("places", torch.randn(10, 10) / 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body._pos_embed(self.body.patch_embed(x))  # type: ignore[operator]
        for block in self.body.blocks:  # type: ignore[union-attr]
            x = x + block.attn(block.norm1(x))
            x = x + self.places @ (self.places @ x).relu()  # type: ignore[operator]
            x = x + block.mlp(block.norm2(x))
        return self.body.forward_head(x)  # type: ignore[operator, no-any-return]


def test_products_that_mix_tokens_are_none() -> None:
    report = tome_fx.explain(Mixed().eval(), 1, example_inputs=images(), min_ratio=0)
    assert [block.mlp for block in report.blocks] == [f"body.blocks.{i}.mlp" for i in range(2)]
