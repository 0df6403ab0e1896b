"""From a photograph to what a model sees, and to a picture of the same field of view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tome_fx.cli.failure import CliError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class DataConfig:
    """timm's data configuration of a model: size [C, H, W], resizing, cropping, normalisation."""

    input_size: tuple[int, int, int]
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_pct: float = 0.95
    crop_mode: str = "center"

    @classmethod
    def from_timm(cls, config: dict[str, Any]) -> DataConfig:
        """Keep what timm's `resolve_data_config` says of these fields."""
        names = cls.__dataclass_fields__
        return cls(**{key: value for key, value in config.items() if key in names})

    def transform(self, size: tuple[int, int], raw: bool) -> Any:
        """timm's own transform for evaluation at a size; `raw` ends at uint8 [C, H, W]."""
        from timm.data import create_transform

        return create_transform(
            input_size=(self.input_size[0], *size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=raw,
        )


def to_batch(images: Sequence[Image.Image], config: DataConfig) -> Tensor:
    """Return the images as a model's input: float32 [B, C, H, W], resized, cropped, normalised.

    One channel is luminance. Raises CliError where the model has neither one nor three channels.
    """
    channels, height, width = config.input_size
    if channels not in (1, 3):
        raise CliError(f"images have 1 or 3 channels, the model takes {channels} (--in-chans)")
    transform = config.transform((height, width), raw=False)
    mode = "L" if channels == 1 else "RGB"
    if channels == 1 and len(config.mean) == 3:
        # timm keeps three means for one channel; their average is that of a grey picture.
        mean, std = (sum(values) / 3 for values in (config.mean, config.std))
        raw = config.transform((height, width), raw=True)
        grey = [torch.as_tensor(np.asarray(raw(image.convert(mode)))) for image in images]
        return (torch.stack(grey).float() / 255 - mean) / std
    return torch.stack([transform(image.convert(mode)) for image in images])


def field_of_view(image: Image.Image, config: DataConfig, size: tuple[int, int]) -> Pixels:
    """Return what the model sees of an image, uint8 [H, W, 3], at a size (height, width) of ours.

    The same crop as `to_batch`, but resized from the full photograph, so that it stays crisp.
    """
    seen = config.transform(size, raw=True)(image.convert("RGB"))
    pixels = torch.as_tensor(np.asarray(seen)).to(torch.uint8).permute(1, 2, 0).contiguous()
    return np.asarray(pixels.numpy(), dtype=np.uint8)
