"""A model of two blocks and small pictures, for the tests of `tome-fx validate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAME = "vit_tiny_patch16_224"
KWARGS = ("depth=2", "patch_size=4")
MODEL = [
    "--model", NAME, "--no-pretrained", "--img-size", "32", "--num-classes", "3", "-j", "0",
    *(word for pair in KWARGS for word in ("--model-kwargs", pair)),
]  # fmt: skip
COUNTS = (5, 5, 3)  # images of each class
TIMED = "samples_per_sec"
Run = Callable[..., str]


def paint(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(40 + 15 * seed, 60, (40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(path)


def rows(out: str, but: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    found = json.loads(out)["results"]
    return [{key: value for key, value in row.items() if key not in but} for row in found]
