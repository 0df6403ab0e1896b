"""torchvision's Vision Transformers, and torch's own encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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


def entries() -> Iterator[Entry]:
    """Five names of torchvision, two encoders of torch."""
    for name, patch in VITS.items():
        yield Entry("torchvision", name, partial(_torchvision, patch))
    for norm_first in (False, True):
        name = "nn.TransformerEncoder" + (" norm_first" if norm_first else "")
        yield Entry("torch", name, lambda first=norm_first: Encoder(first).eval())
