"""From images and a transformed model to the tiles and captions of a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tome_fx.cli import picture, sheet
from tome_fx.cli.console import stage
from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.models import Loaded
from tome_fx.cli.preprocess import field_of_view, to_batch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Look:
    """How a sheet looks: side of a tile in pixels, width of the lines between groups."""

    tile: int = 448
    line: int = 2


def token_maps(
    fast: Any, loaded: Loaded, images: Sequence[Image.Image], batch_size: int = 8
) -> Tensor:
    """Return where every patch went: int64 [L, B, N] on the CPU.

    Raises CliError where each of several windows or views of an image has a map of its own.
    """
    found = []
    with stage("merging tokens", math.ceil(len(images) / batch_size)) as advance:
        for start in range(0, len(images), batch_size):
            batch = to_batch(images[start : start + batch_size], loaded.config)
            with torch.inference_mode():
                found.append(fast.token_map(batch.to(loaded.device, loaded.dtype)).cpu())
            if found[-1].dim() > 3:
                raise CliError(
                    f"each of the {found[-1].shape[2]} windows or views of an image merges by "
                    "itself in this model, and one map of an image is drawn"
                )
            advance()
    return torch.cat(found, dim=1)


def grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the patches of an image of this size.

    Raises CliError where no grid of that many patches has the image's proportions.
    """
    rows = round(math.sqrt(patches * height / width))
    columns = patches // max(rows, 1)
    if rows < 1 or rows * columns != patches:
        raise CliError(f"{patches} tokens are no grid over an image of {height} x {width}")
    return rows, columns


def draw(
    loaded: Loaded,
    images: Sequence[Image.Image],
    names: Sequence[str],
    maps: Tensor,
    layers: Sequence[int],
    look: Look,
) -> Image.Image:
    """Return the sheet: the photograph, then what is left of it after each of the layers."""
    _, height, width = loaded.config.input_size
    rows, columns = grid(maps.shape[2], height, width)
    cell = max(4, round(look.tile / max(rows, columns)))
    table = []
    with stage("drawing", len(images)) as advance:
        for index, image in enumerate(images):
            tile = field_of_view(image, loaded.config, (rows * cell, columns * cell))
            groups = [maps[layer - 1, index].reshape(rows, columns).numpy() for layer in layers]
            table.append([tile, *(picture.merged(tile, each, look.line) for each in groups)])
            advance()
    captions = [sheet.Column("image", f"{maps.shape[2]} patches")]
    for layer, count in zip(layers, tokens(maps, layers), strict=True):
        captions.append(sheet.Column(f"layer {layer}", f"{count} patch tokens"))
    return sheet.compose(captions, table, names if len(images) > 1 else ())


def tokens(maps: Tensor, layers: Sequence[int]) -> list[int]:
    """Return how many tokens hold the patches after each of the layers."""
    return [int(maps[layer - 1].max()) + 1 for layer in layers]


def check_suffix(path: Path, flag: str) -> None:
    """Raise CliError unless the file's name says a kind of picture that can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise CliError(f"{flag} {path}: the name must end in {', '.join(SUFFIXES)}")


def save(image: Image.Image, path: Path) -> None:
    """Write the picture. Raises CliError where that fails."""
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise CliError(f"{path}: {one_line(error)}") from None
