"""The calls of timm's script for validation, which takes the name of a backend as a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config

import tome_fx
from tests.rules.common import TINY
from tests.tiny import tiny

pytestmark = [TINY, pytest.mark.slow, pytest.mark.compiler]
BATCH, R = 4, 16  # r is what the backend takes without options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two full batches and a rest."""
    noise = np.random.default_rng(0)
    for index in range(11):
        file = tmp_path / "validation" / f"class{index % 3}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(file)
    return tmp_path


def batches(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    config = resolve_data_config({"img_size": 64}, model=model)
    data = create_dataset("", root=str(folder), split="validation")
    return create_loader(
        data,
        input_size=config["input_size"],
        batch_size=BATCH,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
        device=torch.device("cpu"),
        img_dtype=dtype,
    )


# timm leaves the files open that it has read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_is_validated(folder: Path) -> None:
    model = tiny(img_size=64, patch_size=4)
    fast = tome_fx.transform(model, R)
    loader = batches(model, folder)
    compiled: Any = torch.compile(model, backend="tome_fx", mode=None)
    compiled.eval()
    sizes = []
    with torch.inference_mode():
        compiled(torch.randn(BATCH, 3, 64, 64))
        for images, _ in loader:
            logits = compiled(images)
            torch.testing.assert_close(logits, fast(images), rtol=1e-4, atol=1e-4)
            assert not torch.allclose(logits, model(images), rtol=1e-3, atol=1e-3)
            sizes.append(len(logits))
    assert sizes == [4, 4, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_is_validated_in_half_precision(folder: Path) -> None:
    """``--model-dtype bfloat16``: the weights and the images are cast, and nothing else."""
    model = tiny(img_size=64, patch_size=4).to(dtype=torch.bfloat16)
    loader = batches(model, folder, torch.bfloat16)
    chosen = tome_fx.backend(inner_backend="aot_eager")
    compiled: Any = torch.compile(model, backend=chosen, mode=None)
    compiled.eval()
    with torch.inference_mode():
        compiled(torch.randn(BATCH, 3, 64, 64).to(dtype=torch.bfloat16))
        for images, target in loader:
            logits = compiled(images)
            assert logits.dtype == torch.bfloat16
            assert logits.isfinite().all()
            torch.nn.functional.cross_entropy(logits, target)
    assert {report.schedule for report in chosen.reports} == {(R, R)}
