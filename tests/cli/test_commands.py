"""The commands, run in this process on models of a few milliseconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tome_fx.cli import demo as demo_module
from tome_fx.cli import main, weights

TINY = "test_vit"  # 6 layers, 100 patches and a class token
SHORT = ("--model-kwargs", "depth=2")
Run = Callable[..., str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed and return its stdout."""

    def run(*args: object) -> str:
        code = main.run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        return out

    return run


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "reachable", lambda url: False)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Four quarters of four colours, with a little noise."""
    quarters = np.kron(np.array([[40, 90], [160, 220]]), np.ones((100, 100)))
    noise = np.random.default_rng(0).normal(0, 4, (200, 200, 3))
    pixels = np.clip(quarters[..., None] + noise, 0, 255).astype(np.uint8)
    path = tmp_path / "quarters.png"
    Image.fromarray(pixels).save(path)
    return path


def test_explain_prints_the_report(command: Run) -> None:
    text = command("explain", TINY, "--r", 8)
    assert "blocks.5.attn" in text
    assert "blocks.5.mlp" in text


def test_explain_json_is_the_report(command: Run) -> None:
    report = json.loads(command("explain", TINY, "--r", "8", "--json"))
    assert report["schedule"] == [8] * 6
    assert [block["tokens_out"] for block in report["blocks"]] == [93, 85, 77, 69, 61, 53]
    assert report["model_name"] == TINY


def test_explain_takes_the_options_of_the_model_and_of_the_pass(command: Run) -> None:
    report = json.loads(
        command(
            "explain", "-m", "vit_tiny_patch16_224", "--img-size", 96, *SHORT,
            "--r", "[3,0]", "--capture", "symbolic_trace", "--json",
        )
    )  # fmt: skip
    assert report["schedule"] == [3, 0]
    assert report["blocks"][0]["tokens_in"] == 37


def test_explain_plans_for_the_hardware(command: Run) -> None:
    planned = ("--r", 8, "--every", 3, "--align", "auto", "--batch", 1, "--hardware", "h200")
    report = json.loads(command("explain", TINY, *planned, "--json"))
    assert (report["every"], report["align"], report["aligned"]) == (3, "auto", 1)
    assert (report["estimate"]["hardware"], report["estimate"]["batch"]) == ("h200", 1)
    assert not any(report["schedule"])
    assert "does not pay" in report["skipped"]


def test_bench_writes_rows_for_every_r_and_mode(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    out = command(
        "bench", TINY, *SHORT, "--r", "4,8", "--no-compile", "-b", 2, "--num-bench-iter", 2,
        "--num-warm-iter", 1, "--results-file", path,
    )  # fmt: skip
    assert str(path) in out
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["r"], row["mode"]) for row in rows] == [
        ("", "eager"),
        ("4", "eager"),
        ("8", "eager"),
    ]
    for row in rows:
        assert float(row["median_ms"]) > 0
        assert float(row["peak_memory_mib"]) > 0
        assert row["batch_size"] == "2"
        share = float(row["speedup"]) / float(row["flop_ratio"])
        assert float(row["flop_ratio_share"]) == pytest.approx(share)
    assert float(rows[2]["flop_ratio"]) > float(rows[1]["flop_ratio"]) > 1.0
    assert float(rows[2]["peak_memory_mib"]) < float(rows[0]["peak_memory_mib"])


@pytest.mark.compiler
@pytest.mark.slow
def test_bench_compiles_both_sides(command: Run) -> None:
    found = json.loads(
        command(
            "bench", TINY, *SHORT, "--img-size", 64, "--r", 2, "-b", 2,
            "--num-bench-iter", 2, "--no-memory", "--json",
        )
    )  # fmt: skip
    kinds = [(row["r"], row["mode"]) for row in found["results"]]
    assert kinds == [("", "eager"), ("2", "eager"), ("", "compiled"), ("2", "compiled")]
    for row in found["results"]:
        assert (row["compile_s"] is None) == (row["mode"] == "eager")
        assert row["peak_memory_mib"] is None
    assert found["environment"]["compile"] == "torch.compile(model), defaults"


@pytest.mark.parametrize("flags", [["--amp"], ["--precision", "bfloat16"]])
def test_bench_in_low_precision(command: Run, flags: list[str]) -> None:
    found = json.loads(
        command(
            "bench", TINY, *SHORT, "--r", 4, "--no-compile", "-b", 1, "--num-bench-iter", 1,
            "--num-warm-iter", 0, "--no-memory", "--json", *flags,
        )
    )  # fmt: skip
    assert found["environment"]["precision"].endswith("bfloat16")


def test_vis_draws_one_sheet_for_images_and_layers(
    command: Run, photograph: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sheet.png"
    found = json.loads(
        command(
            "vis", photograph, photograph, "--model", TINY, *SHORT, "--r", 12, "--layers", "1,2",
            "--tile", 100, "-o", output, "--json",
        )
    )  # fmt: skip
    assert found["tokens"] == [88, 76]
    assert found["weights"] == "random (seed 0), no others in reach"
    with Image.open(output) as sheet:
        assert sheet.width > 3 * 100
        assert sheet.height > 2 * 100


def test_vis_fills_groups_that_are_alike_with_one_colour(
    command: Run, photograph: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sheet.png"
    text = command("vis", photograph, "-m", TINY, "--r", 16, "--line", 0, "-o", output)
    assert f"saved: {output}" in text
    with Image.open(output) as sheet:
        width = sheet.width // 4
        first, last = (
            sheet.crop((column * width, 0, (column + 1) * width, sheet.height)) for column in (1, 3)
        )
    assert len(last.getcolors(10**6) or []) < len(first.getcolors(10**6) or [])


def run_demo(command: Run, photograph: Path, folder: Path, *flags: object) -> str:
    return command(
        "demo",
        "--model",
        TINY,
        *SHORT,
        "--r",
        8,
        "--image",
        photograph,
        "--output-dir",
        folder,
        *flags,
    )


def test_demo_checks_explains_and_draws(command: Run, photograph: Path, tmp_path: Path) -> None:
    text = run_demo(command, photograph, tmp_path / "a" / "b", "--no-speed")
    assert "weights random (seed 0), no others in reach" in text
    assert "bit-identical" in text
    assert "blocks.1.attn" in text
    last = text.rstrip().splitlines()[-2:]
    assert last[0].startswith("FLOP ratio 1.")
    assert last[1] == f"picture    {tmp_path / 'a' / 'b' / 'merged.png'}"
    assert (tmp_path / "a" / "b" / "merged.png").is_file()
    assert "blocks.1.attn" in (tmp_path / "a" / "b" / "report.txt").read_text(encoding="utf-8")


def test_demo_measures_the_speed(command: Run, photograph: Path, tmp_path: Path) -> None:
    flags = ("--no-compile", "--num-bench-iter", 2, "-b", 2)
    text = run_demo(command, photograph, tmp_path, *flags)
    assert "(eager against eager, batch 2)" in text
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [row["r"] for row in found["results"]] == ["", "8"]


def test_demo_json(command: Run, photograph: Path, tmp_path: Path) -> None:
    found = json.loads(run_demo(command, photograph, tmp_path, "--no-speed", "--json"))
    assert found["identity_at_r0"] is True
    assert found["report"]["schedule"] == [8] * 2
    assert found["speedup"] is None


def test_demo_fails_where_r0_is_not_the_identity(
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(loaded: Any, *_: Any) -> Any:
        return lambda x: loaded.model(x) + 0.5

    monkeypatch.setattr(demo_module.merging, "transform", wrong)
    args = ["demo", "-m", TINY, "--image", str(photograph), "--output-dir", str(tmp_path)]
    assert main.run(args) == 2
    assert "r=0 is not the identity: logits differ by up to 0.5" in capsys.readouterr().err


def test_the_photograph_of_the_demo_is_shipped() -> None:
    with Image.open(demo_module.shipped_photograph()) as image:
        assert min(image.size) >= 224
