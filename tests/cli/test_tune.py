"""`tome-fx tune`, in this process, on a model of two blocks and a machine that is a formula."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import tome_fx
from tests.cli.validating.common import Run, paint
from tests.tuning.common import Machine, plain
from tome_fx.cli import main, weights

MODEL = ["test_vit", "--no-pretrained", "--model-kwargs", "depth=2"]
SMALL = ["--budget", "8", "--batch-size", "2", "--no-compile"]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(weights, "reachable", lambda url: False)
    return Machine(plain).install(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in two class folders."""
    for index in range(5):
        paint(tmp_path / "data" / f"n{index % 2}" / f"{index}.png", index)
    return tmp_path / "data"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> str:
        code = main.run(["tune", *MODEL, *map(str, args), *SMALL])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        return out

    return run


def test_a_folder_gives_recipe_curve_and_plot(command: Run, folder: Path, tmp_path: Path) -> None:
    recipe, curve, plot = (tmp_path / name for name in ("fast.json", "curve.csv", "curve.svg"))
    out = command(folder, "--target-speedup", 1.2, "--recipe", recipe, "--plot", plot,
                  "--results-file", curve)  # fmt: skip
    assert "on 5 images" in out
    assert "random (seed 0)" in out
    assert [line for line in out.splitlines() if line.startswith("saved: ")] == [
        f"saved: {path}" for path in (recipe, plot, curve)
    ]
    with curve.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    schedule = json.loads(recipe.read_text())["schedule"]
    chosen = next(row for row in rows if row["r"] == " ".join(map(str, schedule)))
    assert float(chosen["speedup"]) >= 1.2
    assert f"{float(chosen['drift']):.4f}" in out
    assert plot.read_text().startswith("<svg")


@dataclass
class Asked:
    """What the command asked the library for."""

    model: Any = None
    images: Any = None
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """In the place of the search: takes note, and gives an answer."""
    found = Asked()

    def tune(model: Any, images: Any, **options: Any) -> tome_fx.Tuned:
        found.model, found.images, found.options = model, images, options
        point = tome_fx.Point((3, 1), "refined", 1.5, 1.4, None, float("inf"), None)
        return tome_fx.Tuned((3, 1), 1.4, 1.3, 1.5, 0.1, None, 1.5, (point,), model)

    monkeypatch.setattr(tome_fx, "tune", tune)
    return found


def test_single_images_and_the_answer_as_json(command: Run, folder: Path, asked: Asked) -> None:
    files = [word for path in sorted(folder.rglob("*.png"))[:3] for word in ("--images", path)]
    found = json.loads(command(*files, "--max-drift", 0.3, "--json"))
    assert asked.images.shape == (3, 3, 160, 160)
    assert (asked.options["target_speedup"], asked.options["max_drift"]) == (None, 0.3)
    assert found["tuned"] == {
        "model_name": "test_vit", "r": [3, 1], "speedup": 1.4, "speedup_q1": 1.3,
        "speedup_q3": 1.5, "drift": 0.1, "agreement": None, "flop_ratio": 1.5,
    }  # fmt: skip
    assert found["curve"][0]["drift"] is None
    assert found["environment"]["images"] == 3


def test_a_folder_gives_as_many_images_as_are_asked_for(
    command: Run, folder: Path, asked: Asked
) -> None:
    command(folder, "--num-images", 5, "--target-speedup", 2)
    every = asked.images
    command(folder, "--num-images", 2, "--target-speedup", 2)
    assert torch.equal(asked.images, every[[0, 2]])


def test_flags_reach_the_search(command: Run, folder: Path, tmp_path: Path, asked: Asked) -> None:
    out = command(
        folder, "--target-speedup", 2, "--state", tmp_path / "state.json", "--measurements", 3,
        "--num-bench-iter", 4, "--num-warm-iter", 0, "--no-prop-attn", "--precision", "bfloat16",
    )  # fmt: skip
    wanted = {
        "batch_size": 2, "budget": 8, "measurements": 3, "rounds": 4, "warmup": 0,
        "compiled": False, "prop_attn": False, "state": tmp_path / "state.json",
    }  # fmt: skip
    assert {key: asked.options[key] for key in wanted} == wanted
    assert asked.images.dtype == torch.bfloat16
    assert "r          [3,1]" in out
    assert "speed-up   1.40x (quartiles 1.30 to 1.50), FLOP ratio 1.50" in out


BAD = [
    (["data", "--target-speedup", "0.9"], "--target-speedup 0.9 is not a number above"),
    (["data", "--target-speedup", "2", "--state", "text.json"], "--state text.json is no state"),
    (["data"], "one goal"),
    (["data", "--target-speedup", "2", "--max-drift", "1"], "one goal"),
    (["--target-speedup", "2"], "give images"),
    (["data", "--images", "data/n0/0.png", "--target-speedup", "2"], "give images"),
    (["none", "--target-speedup", "2"], "none: does not exist"),
    (["--images", "none.png", "--target-speedup", "2"], "none.png: does not exist"),
    (["data", "--target-speedup", "2", "--recipe", "a.txt"], "--recipe a.txt: the name must end"),
    (["data", "--target-speedup", "2", "--plot", "a.png"], "--plot a.png: the name must end"),
    (["data", "--target-speedup", "2", "--results-file", "no/a.csv"], "does not exist"),
    (["data", "--target-speedup", "2", "--budget", "3"], "--budget"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("args", "text"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input(
    args: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.json").write_text("{}", encoding="utf-8")
    assert main.run(["tune", *MODEL, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("tome-fx: ")
    assert text in err


@pytest.mark.usefixtures("folder")
def test_a_goal_out_of_reach_ends_with_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["tune", *MODEL, "data", "--target-speedup", "50", *SMALL]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tome-fx: --target-speedup 50 was not reached: the fastest")
