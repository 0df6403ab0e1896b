"""Bad input: exit code 2 and exactly one line on stderr; a traceback only with --debug."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer import Abort

from tome_fx.cli import app, main
from tome_fx.errors import ConfigError

TINY = "test_vit"
SHORT = ("--model-kwargs", "depth=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a good picture and several bad ones."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:3000])
    Path("text.png").write_text("not a picture", encoding="utf-8")
    Image.new("L", (4000, 3000)).save("huge.png")
    Path("not.pth").write_text("not a checkpoint", encoding="utf-8")
    return tmp_path


BAD = [
    (["frobnicate"], "No such command"),
    (["explain"], "no model named"),
    (["explain", TINY, "--no-such-flag"], "--no-such-flag"),
    (["explain", "vit_bass_patch16_224"], "vit_base_patch16_224"),
    (["explain", TINY, "--model", "other"], "two models"),
    (["explain", "resnet18"], ""),
    (["explain", TINY, "--r", "many"], "--r many"),
    (["explain", TINY, "--r", "-1"], "--r -1: -1 is negative. --r is a number such as 16, one"),
    (["explain", TINY, "--r", "16:-5"], "--r 16:-5: inflect -5.0 is outside"),
    (["explain", TINY, "--r", "nan"], ""),
    (["explain", TINY, "--r", "[1,1,1,1,1,1,1,1]"], ""),
    (["explain", TINY, "--r", "90", "--strict"], "Lower r, or leave out --strict"),
    (["explain", TINY, "--capture", "photograph"], "--capture photograph is not"),
    (["explain", TINY, "--rounding", "up"], "--rounding up is not one of"),
    (["explain", TINY, "--every", "0"], "--every 0 is not a number of layers"),
    (["explain", TINY, "--align", "many"], "--align many"),
    (["explain", TINY, "--batch", "0"], "--batch 0 is not a number of images"),
    (["explain", TINY, "--hardware", "h200"], "--hardware h200 is for the estimate"),
    (
        ["explain", TINY, "--batch", "1", "--hardware", "abacus"],
        "--hardware abacus is not one of a100",
    ),
    (["explain", TINY, "--device", "abacus"], "--device abacus"),
    (["explain", TINY, "--checkpoint", "none.pth"], "none.pth: no such file"),
    (["explain", TINY, "--checkpoint", "not.pth"], "never run"),
    (["explain", TINY, "--img-size", "0"], "--img-size"),
    (["explain", "resnet18", "--img-size", "64"], "takes no --img-size"),
    (["bench", TINY, "--no-eager", "--no-compile"], "nothing is left to time"),
    (["export", TINY, "--format", "onnx", "-o", "a.pt2"], "the name of onnx ends in .onnx"),
    (["validate", ".", "--torchcompile", "tome_fx", "-m", TINY], "would merge in the original too"),
    (["validate", "."], "no model named: --model"),
    (["validate", ".", "-m", TINY, "--no-pretrained", "--dataset", "foo/bar"], "foo is not one of"),
    (["bench", TINY, "--batch-size", "many"], "--batch-size"),
    (["bench", TINY, "--precision", "float63"], "float63"),
    (["bench", TINY, "--amp", "--amp-dtype", "int8"], "--amp-dtype int8"),
    (["bench", TINY, "--results-file", "none/a.csv"], "does not exist"),
    (["bench", TINY, "--results-format", "yaml"], "yaml"),
    (["vis"], "IMAGE"),
    (["vis", "none.png"], "none.png: does not exist"),
    (["vis", "cut.png"], "cut.png: unreadable"),
    (["vis", "text.png"], "text.png: not an image"),
    (["vis", "huge.png", "--max-pixels", "1000000"], "12,000,000 pixels"),
    (["vis", "good.png", "--output", "a.psd"], "a.psd"),
    (["vis", "good.png", "--output", "none/a.png"], "does not exist"),
    (["vis", "good.png", "-m", TINY, "--no-pretrained", *SHORT, "--layers", "7"], "layers 1 to 2"),
    (["vis", "good.png", "-m", TINY, "--layers", "last"], "--layers last"),
    (["vis", "good.png", "--output", "good.png"], "good.png: is one of the images"),
    (["bench", TINY, "--amp", "--precision", "float16"], "--amp with --precision float16"),
    (["profile", TINY, "--r", "many"], "--r many"),
    (["demo", "--image", "none.png"], "none.png"),
    (["demo", "-m", TINY, "--no-pretrained", "--output-dir", "good.png"], "good.png: is a file"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("args", "text"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("tome-fx: ")
    assert text in err


@pytest.mark.usefixtures("folder")
def test_debug_shows_the_traceback() -> None:
    with pytest.raises(app.CliError):
        main.run(["vis", "none.png", "--debug"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("r: -1\nis below 0"), 2),
        (ZeroDivisionError("oh"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("no", name="timm"), 2),
        (BrokenPipeError(), 1),
    ],
)
def test_every_error_has_its_code_and_its_line(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(app, "call", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert main.run([]) == code
    assert capsys.readouterr().err.count("\n") <= 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["tune", "--state", "a.json"], "; the same command goes on from what is kept"),
        (["validate", "--results-file=a.csv"], "; the same command goes on from what is kept"),
        (["validate", "--results-file", "a.csv", "--fresh"], ""),
        (["validate"], ""),
    ],
)
def test_an_interruption_says_what_next(
    args: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Versions of typer differ: some hand the interruption on, some make a code of it."""
    for answer in (lambda *_, **__: 130, fails_with(KeyboardInterrupt()), fails_with(Abort())):
        monkeypatch.setattr(app, "app", answer)
        assert main.run(args) == 130
        assert capsys.readouterr().err == f"tome-fx: interrupted{told}\n"


def fails_with(error: BaseException) -> Callable[..., int]:
    """A command that ends so."""

    def command(*_: object, **__: object) -> int:
        raise error

    return command


@pytest.mark.parametrize("args", [[], ["--help"], ["bench", "--help"], ["--version"]])
def test_help_and_version(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(args) == 0
    out, err = capsys.readouterr()
    assert "tome-fx" in out
    assert err == ""


def process(*args: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the entry point in a process of its own, with some modules made unimportable."""
    block = "".join(f"sys.modules[{name!r}] = None; " for name in blocked)
    code = f"import sys; {block}from tome_fx.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("module", ["typer", "timm"])
def test_without_the_extra_one_line_says_what_to_install(module: str) -> None:
    done = process("explain", TINY, blocked=(module,))
    assert done.returncode == 2
    assert done.stderr == f'tome-fx: the command line needs {module}: pip install "tome_fx[cli]"\n'


def test_a_real_process_exits_with_2_and_one_line() -> None:
    done = process("explain", "vit_bass_patch16_224")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "closest: vit_base_patch16_224" in done.stderr


def test_a_real_process_prints_only_json() -> None:
    import json

    done = process("explain", TINY, *SHORT, "--r", "4", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schedule"] == [0] * 2  # on so few tokens it does not pay
    assert "is not applied" in report["skipped"]
    assert done.stderr == ""


@pytest.mark.cost
def test_a_person_is_told_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["explain", TINY, *SHORT, "--r", "4"]) == 0
    out, _ = capsys.readouterr()
    assert "is not applied" in out
    assert "min_ratio=" not in out
