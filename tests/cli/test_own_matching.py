"""`--matching FILE.py:NAME`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import SHORT, TINY, Run
from tests.cli.test_commands import command as command
from tome_fx.cli import functions, main
from tome_fx.own_matching import identity_of

CODE = """
import torch
import helper

def pairs(metric, r):
    src = 2 * torch.arange(r, device=metric.device)
    return src, src + helper.STEP

def wrong(metric, r):
    return metric

constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a function, and a module beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "helper.py").write_text("STEP = 1\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["mine.py:pairs", "{}/mine.py:pairs", "mine:pairs"])
def test_a_function_is_found(folder: Path, command: Run, name: str) -> None:
    matching = name.format(folder)
    out = command("explain", TINY, *SHORT, "--r", 8, "--matching", matching, "--json")
    assert "what merges is chosen by pairs" in json.loads(out)["notes"]


def test_what_was_timed_with_it_says_so(folder: Path, command: Run) -> None:
    args = ["bench", TINY, *SHORT, "--r", 8, "-b", 1, "--num-bench-iter", 1, "--num-warm-iter", 0]
    args += ["--no-compile", "--no-memory", "--json"]
    around = [json.loads(command(*args, *more))["environment"] for more in (
        ["--matching", "mine.py:pairs"], [])]  # fmt: skip
    short = "--model-kwargs depth=2"
    assert [each["flags"] for each in around] == [f"{short} --matching mine.py:pairs", short]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine.py", "--matching mine.py: a file and a function of it"),
        ("mine.py:", "a file and a function of it"),
        ("mine.py:pair", "mine.py holds no pair"),
        ("yours.py:pairs", "FileNotFoundError"),
        ("nowhere.at.all:pairs", "No module named 'nowhere'"),
        ("broken.py:pairs", "--matching broken.py:pairs: ZeroDivisionError"),
        ("mine.py:constant", "matching=3 is not None or a function"),
        ("mine.py:wrong", "not a pair (src, dst)"),
    ],
)
def test_what_is_none(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    assert main.run(["explain", TINY, *SHORT, "--r", "8", "--matching", name]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


KINDS = """
from __future__ import annotations
import functools
from dataclasses import dataclass
import torch

@dataclass
class Chooser:
    step: int = 1
    def __call__(self, metric, r):
        return plain(metric, r)

def plain(metric, r):
    src = 2 * torch.arange(r)
    return src, src + 1

chooser = Chooser()
decorated = torch.no_grad()(plain)
partial = functools.partial(decorated)
"""


@pytest.mark.parametrize("name", ["plain", "chooser", "decorated", "partial"])
def test_an_edit_is_another_function(folder: Path, name: str) -> None:
    def identity() -> str:
        return identity_of(functions.load_function(f"kinds.py:{name}", "--matching"))

    (folder / "kinds.py").write_text(KINDS, encoding="utf-8")
    before = identity()
    assert before == identity()
    (folder / "kinds.py").write_text(KINDS.replace("src + 1", "1 + src"), encoding="utf-8")
    assert identity() != before
