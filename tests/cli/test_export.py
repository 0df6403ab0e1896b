"""`tome-fx export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tome_fx.cli import formats, main

MODEL = ("test_vit", "--model-kwargs", "depth=2", "--r", "4")


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main.run(["export", *MODEL, *map(str, args)])
    return code, *capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_that_computes_what_the_model_does(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"fast{formats.SUFFIX[kind]}"
    code, out, err = run(capsys, "--format", kind, "-o", path, "--json", "--no-scatter")
    assert code == 0, err
    told = json.loads(out)
    assert told["output"] == str(path)
    assert path.stat().st_size == told["bytes"]
    assert told["schedule"] == [4, 4]
    assert set(told["parity"]) == {"2", "3", "8"}
    assert max(told["parity"].values()) < 1e-4


def test_one_batch_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fast.pt2"
    code, out, err = run(capsys, "--batch-size", 1, "-o", path)
    assert code == 0, err
    assert "batches of 1" in out
    assert torch.export.load(path).module()(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--format", "tflite"), "--format tflite: not one of pt2, aoti, onnx"),
        (("-o", "/nowhere/x.pt2"), "no such folder"),
        (("-o", "x.bin"), "ends in .pt2"),
        (("-o", "folder.pt2"), "--output folder.pt2: cannot be written: Is a directory"),
        (("--r", "-1"), "--r -1: -1 is negative"),
        (("--batch-size", "0"), "'--batch-size'"),
    ],
)
def test_wrong_inputs_are_one_line(
    args: tuple[str, ...],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    code, out, err = run(capsys, *args)
    assert code == 2
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_a_file_that_is_wrong_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "write", lambda *args: lambda x: torch.zeros(len(x), 1000))
    code, _, err = run(capsys, "-o", tmp_path / "x.pt2")
    assert code == 2
    assert "does not compute what the model does" in err
