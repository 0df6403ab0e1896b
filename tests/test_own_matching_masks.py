"""`matching=` where a mask tells tokens apart: refused if it is padding, else noted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY
from tests.test_own_matching import neighbours
from tests.tiny import images, tiny

pytestmark = TINY


def padded(masked: bool) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny(class_token=False, global_pool="avg")

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            tokens = self.body.patch_embed(x).flatten(1, -2) + self.body.pos_embed
            for block in self.body.blocks:
                q, k, v = (
                    block.attn.qkv(block.norm1(tokens))
                    .reshape(*tokens.shape[:2], 3, 2, -1)
                    .permute(2, 0, 3, 1, 4)
                )
                seen = mask[:, None, None] if masked else None
                y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
                tokens = tokens + block.attn.proj(y.transpose(1, 2).flatten(2))
                tokens = tokens + block.mlp(block.norm2(tokens))
            return tokens.sum(1)

    return Model().eval()


def test_padding_is_not_left_to_it() -> None:
    x, mask = images(), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 7:] = False
    with pytest.raises(
        tome_fx.ConfigError, match=r"neighbours cannot be asked at .*padding.*list for r"
    ):
        tome_fx.transform(padded(True), 2, example_inputs=(x, mask), matching=neighbours)
    fast = tome_fx.transform(padded(True), [0, 0], example_inputs=(x, mask), matching=neighbours)
    assert fast.schedule == (0, 0)
    assert tome_fx.transform(
        padded(False), 2, example_inputs=(x, mask), matching=neighbours
    ).schedule == (2, 2)


class Banded(nn.Module):
    """Attention under a mask that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny(class_token=False, global_pool="avg")
        place = torch.arange(9)
        self.register_buffer("band", (place[:, None] - place).abs() < 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body.patch_embed(x) + self.body.pos_embed
        for block in self.body.blocks:
            q, k, v = block.attn.qkv(tokens).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.band)
            tokens = tokens + y.transpose(1, 2).flatten(2)
        return tokens.mean(1)


def test_a_mask_that_all_images_share_is_noted() -> None:
    fast = tome_fx.transform(Banded().eval(), 2, example_inputs=images(), matching=neighbours)
    assert fast.schedule == (2, 2)
    assert any("which what chooses does not see" in note for note in fast.report.notes)
