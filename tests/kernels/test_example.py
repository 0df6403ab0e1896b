"""The measuring example, as far as a machine without a device can take it."""

from __future__ import annotations

import csv
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "kernels.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernels_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "needs an NVIDIA device; none is there" in err


@pytest.mark.parametrize("name", ["vit_base_224", "vit_large_384"])
def test_its_steps_are_those_of_a_model(example: ModuleType, name: str) -> None:
    shape = example.SHAPES[name]
    for layer in (0, shape.layers // 2):
        inputs = example.inputs_of(shape, layer, 2, "cpu", torch.bfloat16)
        left = 1 + shape.patches - (layer + 1) * shape.r
        assert example.match(inputs, shape.r).keep.shape == (2, left - 1)
        for step in (example.merge_norm, example.both):
            merged, normed, size = step(inputs, shape.r)
            assert merged.shape == normed.shape == (2, left, shape.channels)
            assert size.shape == (2, left - 1)


def test_its_table(example: ModuleType, tmp_path: Path) -> None:
    row = example.Row("vit_base_224", 6, 101, 256, "merge + norm", 123.45, 61.7, 2.0)
    assert len(example.line(row)) == len(example.HEADER)
    example.written(tmp_path / "kernels.csv", [row, row])
    with (tmp_path / "kernels.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [line["portable_us"] for line in read] == ["123.45"] * 2


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning")  # scores want all bits
def test_it_measures(example: ModuleType) -> None:
    rows = list(example.measured("vit_base_224", 0, 2, 2))
    assert [row.step for row in rows] == list(example.STEPS)
    assert all(row.portable_us > 0 and row.triton_us > 0 for row in rows)
