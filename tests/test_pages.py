"""The examples of the README and of the pages about use run as they stand, on a small model.

``docs/functional.md`` and ``docs/rules.md`` have tests of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import tome_fx
from tests.rules.common import TINY
from tests.test_wholes import llava, prompts
from tests.tiny import images, tiny
from tests.towers import TOWERS

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [TINY, pytest.mark.filterwarnings("ignore")]


class Uncompiled:
    """Stands in for Inductor, which has tests of its own."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, module: Any, inputs: Any) -> Any:
        return module


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the pages take as given: a model, images, labels; and what would take minutes."""
    torch._dynamo.reset()
    model = tiny()
    torch.save({"model": model.state_dict()}, tmp_path / "vit_trained_with_merging.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: model)
    monkeypatch.setattr(torch, "_TorchCompileInductorWrapper", Uncompiled)
    monkeypatch.setattr(
        torch._inductor,
        "aoti_compile_and_package",
        lambda program, package_path: Path(package_path).touch(),
    )
    yield {
        "torch": torch,
        "tome_fx": tome_fx,
        "model": model,
        "images": images(4),
        "labels": torch.tensor([0, 1, 2, 3]),
        "loss_function": F.cross_entropy,
    }
    torch._dynamo.reset()


def ran(page: str, names: dict[str, Any]) -> dict[str, Any]:
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert code
    for block in code:
        exec(block, names)
    return names


def test_readme(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    fast = ran("README.md", names)["fast"]
    assert fast(images()).shape == (2, 10)
    assert "tokens" in capsys.readouterr().out


def test_compile(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    ran("docs/compile.md", names)
    assert len(names["backend"].reports) == 1
    assert "tokens" in capsys.readouterr().out


def test_supported(names: dict[str, Any]) -> None:
    pytest.importorskip("transformers.models.qwen2_vl")
    model, tower = names["model"], TOWERS[0]
    patches, grid = tower.given(((1, 4, 4),))
    model.model = SimpleNamespace(visual=tower.build())
    whole, inputs = llava(), prompts(2)
    given = {"patches": patches, "grid": grid["grid_thw"], "whole": whole, "inputs": inputs}
    found = ran("docs/supported.md", names | given)
    assert any(whole.model.vision_tower.schedule)
    assert whole(**inputs).logits.isfinite().all()
    assert any(model.model.visual.schedule)
    fast, x = found["features"], images()
    assert any(fast.schedule)
    assert fast(x).shape == model.forward_features(x).shape
    backend = tome_fx.backend(fast.r, inner_backend="eager")
    assert torch.equal(torch.compile(model.forward_features, backend=backend)(x), fast(x))


def test_deployment(names: dict[str, Any], tmp_path: Path) -> None:
    ran("docs/deployment.md", names)
    made = {"fast.pt2", "compiled.pt2", "fast.onnx", "fast.json", "fast.safetensors"}
    assert made <= {path.name for path in tmp_path.iterdir()}
    assert torch.equal(names["again"](images()), names["fast"](images()))


def test_matching(names: dict[str, Any]) -> None:
    fast = ran("docs/matching.md", names)["fast"]
    assert any(fast.schedule)
    assert fast(images()).shape == (2, 10)


def test_training(names: dict[str, Any]) -> None:
    before = names["model"].head.weight.detach().clone()
    ran("docs/training.md", names)
    assert torch.equal(names["model"].head.weight, before)  # the last block loads them again
    assert names["fast"].settings.prop_attn
    assert not names["fast"].training
