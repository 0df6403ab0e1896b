"""Bad input: exit code 2 and one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.validating.common import MODEL
from tome_fx.cli import main


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "no data"),
        (["none"], "none: does not exist"),
        (["a.txt"], "neither a folder nor a tar file"),
        (["empty"], "0 images"),
        (["data", "--num-classes", "4"], "3 classes, the model has 4"),
        (["data", "--class-map", "none.txt"], "none.txt"),
        (["data", "--dataset", "torch/none"], "none"),
        (["data", "--data-dir", "other"], "two folders"),
        (["data", "--labels", "some"], "--labels some"),
        (["data", "--r", "-1"], "-1"),
        (["data", "--r", "[8,8,8]"], "2 layers"),
        (["data", "--r", "60", "--strict"], "60"),
        (["data", "--model", "vit_bass_patch16_224"], "closest: vit_base_patch16_224"),
        (["data", "--split", "test"], "no split 'test'; there are val (--split)"),
        (["data/val", "--split", "test"], "no split 'test', nor any other; leave --split out"),
        (["parts"], "no split 'validation'; there are train, test (--split)"),
        (["data", "--in-chans", "4"], "--in-chans"),
        (["data", "--crop-pct", "1.5"], "--crop-pct 1.5"),
        (["data", "--interpolation", "magic"], "--interpolation magic: not one of nearest, "),
        (["data", "--torchcompile", "none"], "--torchcompile"),
        (["data", "--results-file", "none/a.csv"], "does not exist"),
        (["data", "--model-kwargs", "global_pool=''"], "not one row of logits"),
    ],
)
def test_bad_input(
    flags: list[str],
    text: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data.parent)
    Path("a.txt").touch()
    Path("empty").mkdir()
    for name in ("train", "test"):
        Path("parts", name).mkdir(parents=True)
    assert main.run(["validate", *MODEL, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert text in err


def test_a_folder_that_may_not_be_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read anything
    assert main.run(["validate", str(data), *MODEL]) == 2
    err = capsys.readouterr().err
    assert f"'{data}' is not readable" in err
    assert err.count("\n") == 1


# timm leaves the file open that it could not read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(
    data: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = data / "val" / "n1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:300])
    assert main.run(["validate", str(data), "--r", "8", *MODEL, "-j", str(workers)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tome-fx: {broken}: unreadable image")
    assert err.count("\n") == 1
