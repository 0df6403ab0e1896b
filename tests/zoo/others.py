"""Vision Transformers of torchvision, torch's own encoder, and the towers of open_clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from tests.zoo.entry import Entry

# patch size of each name; width and depth are shrunk.
VITS = {"vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14}


def _torchvision(patch: int) -> nn.Module:
    return VisionTransformer(224, patch, 2, 4, 64, 128).eval()


class Encoder(nn.Module):
    """Patches through ``nn.TransformerEncoder``."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 16, 16)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.encoder(self.stem(image).flatten(2).transpose(1, 2)).mean(1)
        return result


# Of open_clip's options for the image tower, those that change what is computed.
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "VisionTransformer": {},
    "VisionTransformer average": {"pool_type": "avg", "pos_embed_type": "sin_cos_2d"},
    "VisionTransformer LayerScale": {"ls_init_value": 1e-5, "final_ln_after_pool": True},
    "VisionTransformer attentional pool": {
        "attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4,
    },
    "VisionTransformer custom blocks": {
        "block_type": "custom", "qk_norm": True, "scale_heads": True, "scale_fc": True,
    },
}  # fmt: skip


def _clip(tower: Mapping[str, Any]) -> nn.Module:
    """A whole CLIP, its text side causal."""
    size = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 96}
    vision = open_clip.CLIPVisionCfg(**{**size, **tower})
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=100, width=32, heads=2, layers=2)
    return open_clip.CLIP(32, vision, text).eval()


def _image_side(tower: Mapping[str, Any]) -> nn.Module:
    visual: nn.Module = _clip(tower).visual
    return visual


def _text(batch: int) -> Mapping[str, Any]:
    tokens = torch.arange(8).expand(batch, 8) + torch.arange(batch)[:, None]
    return {"text": tokens.clone()}


def entries() -> Iterator[Entry]:
    """Five names of torchvision, two encoders of torch, the towers of open_clip."""
    for name, patch in VITS.items():
        yield Entry("torchvision", name, partial(_torchvision, patch))
    for norm_first in (False, True):
        name = "nn.TransformerEncoder" + (" norm_first" if norm_first else "")
        yield Entry("torch", name, lambda first=norm_first: Encoder(first).eval())
    for name, tower in TOWERS.items():
        yield Entry("open_clip", name, partial(_image_side, tower), (3, 96, 96))
    yield Entry("open_clip", "CLIP", partial(_clip, {}), (3, 96, 96), "image", _text)
