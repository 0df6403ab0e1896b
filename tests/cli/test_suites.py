"""Suites of benchmarks on models of a few milliseconds: columns, going on, plots, refusals."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tome_fx.cli import bench as bench_command
from tome_fx.cli import main
from tome_fx.cli.failure import CliError
from tome_fx.cli.suites import cases, figures, plots
from tome_fx.cli.suites import run as suites
from tome_fx.cli.suites.cases import EAGER, INFERENCE, TRAINING, Case
from tome_fx.cli.suites.steps import summed
from tome_fx.profiling.steps import ADDED, STEPS

TINY = "test_vit"


def tiny(**options: Any) -> Case:
    return Case(**({"model": TINY, "r": "2", "batch_size": 2, "img_size": 64, "depth": 2,
                    "mode": EAGER, "rounds": 2} | options))  # fmt: skip


SMALL = {
    "targets": [tiny(), tiny(r="3")],
    "families": [tiny()],
    "r": [tiny(r="2"), tiny(r="4")],
    "batch": [tiny(batch_size=1), tiny(batch_size=3)],
    "tokens": [tiny(), tiny(img_size=96)],
    "training": [tiny(grad=TRAINING), tiny(r="3", grad=TRAINING)],
    # With fewer tokens the gradients of the weights are all that counts.
    "memory": [tiny(batch_size=8, img_size=160, r="20", grad=grad)
               for grad in (INFERENCE, TRAINING)],
    "depth": [tiny(depth=1), tiny(depth=2)],
    "profile": [tiny(), tiny(batch_size=3)],
}  # fmt: skip
CPU = cases.CPU


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cases, "CPU", cases._suites(SMALL))
    monkeypatch.chdir(tmp_path)


def bench(*args: object) -> int:
    return main.run(["bench", "--num-warm-iter", "1", *map(str, args)])


def rows(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_suite_writes_its_rows_and_a_plot(tmp_path: Path) -> None:
    assert bench("--suite", "--out", tmp_path / "all") == 0
    for name, wanted in SMALL.items():
        found = rows(tmp_path / "all" / f"{name}-cpu.csv")
        keys = [tuple(row[key] for key in cases.KEYS) for row in found]
        assert list(dict.fromkeys(keys)) == [case.key for case in wanted]
        assert len(keys) == len(wanted) or name == "profile", "one row a case"
        for row in found:
            assert row["suite"] == name
            assert row["torch"] == torch.__version__
            assert all(row[key] for key in ("device_name", "threads", "precision", "tome_fx"))
        drawing = (tmp_path / "all" / f"{name}-cpu.svg").read_text(encoding="utf-8")
        assert "<svg" in drawing
        assert "</svg>" in drawing
        assert len(drawing) < 60_000


def test_the_figures_of_speed_belong_together(tmp_path: Path) -> None:
    assert bench("--suite", "targets", "--out", tmp_path, "--no-plots") == 0
    for row in rows(tmp_path / "targets-cpu.csv"):
        got = {name: float(row[name]) for name in suites.COLUMNS["speed"] if row[name]}
        close = pytest.approx
        assert got["ratio"] == close(got["original_ms"] / got["transformed_ms"], rel=1e-5)
        assert got["flop_ratio"] == close(got["original_gmacs"] / got["transformed_gmacs"], 1e-5)
        assert got["share"] == close(got["ratio"] / got["flop_ratio"], rel=1e-5)
        assert got["tokens"] == 17
        assert got["tokens_out"] == 17 - 2 * float(row["r"])
        assert got["original_peak_mib"] > 0
        assert "original_compile_s" not in got, "nothing was compiled"
    assert not list(tmp_path.glob("*.svg"))


def test_training_keeps_more_than_inference_and_merging_less(tmp_path: Path) -> None:
    assert bench("--suite", "memory", "--out", tmp_path, "--no-plots") == 0
    inference, training = rows(tmp_path / "memory-cpu.csv")
    assert (inference["grad"], training["grad"]) == (INFERENCE, TRAINING)
    for row in (inference, training):
        assert float(row["memory_ratio"]) > 1
        before, after = (float(row[f"{name}_peak_mib"]) for name in ("original", "transformed"))
        assert float(row["memory_ratio"]) == pytest.approx(before / after, rel=1e-5)
    assert float(training["original_peak_mib"]) > 2 * float(inference["original_peak_mib"])


def test_a_stopped_suite_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = figures.figures, []

    def stopping(kind: str, case: Case, setup: figures.Setup) -> list[dict[str, Any]]:
        asked.append(case.r)
        if asked == ["2", "4"]:
            raise KeyboardInterrupt
        return real(kind, case, setup)

    monkeypatch.setattr(suites, "figures", stopping)
    arguments = ("--suite", "r", "--out", tmp_path, "--no-plots")
    assert bench(*arguments) == 130
    first = rows(tmp_path / "r-cpu.csv")
    assert [row["r"] for row in first] == ["2"]
    assert bench(*arguments) == 0
    assert asked == ["2", "4", "4"]
    assert rows(tmp_path / "r-cpu.csv")[0] == first[0], "a row that is there stays as it is"
    assert bench(*arguments) == 0
    assert asked == ["2", "4", "4"]
    assert bench(*arguments, "--fresh") == 0
    assert asked == ["2", "4", "4", "2", "4"]


def test_rows_of_another_machine_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--suite", "r", "--out", tmp_path, "--no-plots") == 0
    path = tmp_path / "r-cpu.csv"
    path.write_text(path.read_text().replace(torch.__version__, "1.0"), encoding="utf-8")
    capsys.readouterr()
    assert bench("--suite", "r", "--out", tmp_path, "--no-plots") == 2
    err = capsys.readouterr().err
    assert "measured with torch 1.0" in err
    assert "--fresh" in err
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert bench("--suite", "r", "--out", tmp_path, "--no-plots") == 2
    assert "not the results of this suite" in capsys.readouterr().err


def test_one_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--suite", "r", "--out", tmp_path, "--no-plots", "--model", TINY) == 0
    assert len(rows(tmp_path / "r-cpu.csv")) == 2
    assert bench("--suite", "r", "--out", tmp_path, "--no-plots", "--model", "another") == 2
    assert f"no case of another; it has {TINY}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--suite", "target"], "closest: targets"),
        (["--suite", "r,tokes"], "closest: tokens"),
        (["--suite", "r", "--precision", "float63"], "float63"),
        (["--suite", "r", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_input(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_plots_without_the_library_say_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench("--suite", "r") == 2
    assert 'pip install "tome_fx[plot]", or --no-plots' in capsys.readouterr().err


def test_a_plot_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    assert bench("--suite", "depth", "--out", tmp_path) == 0
    found = rows(tmp_path / "depth-cpu.csv")
    (suite,) = cases.chosen("depth", "cpu")
    again = plots.draw(suite, found, tmp_path / "again.svg").read_bytes()
    assert again == (tmp_path / "depth-cpu.svg").read_bytes()


def test_transform_is_timed_in_parts(tmp_path: Path) -> None:
    assert bench("--suite", "depth", "--out", tmp_path, "--no-plots") == 0
    short, long = rows(tmp_path / "depth-cpu.csv")
    assert int(short["nodes_after"]) < int(long["nodes_after"])
    parts = sum(float(long[name]) for name in ("capture_s", "locate_s", "rewrite_s"))
    assert 0.3 * float(long["transform_s"]) < parts < 3 * float(long["transform_s"])


def test_steps_are_those_of_the_profile_and_sum_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--suite", "profile", "--out", tmp_path, "--no-plots") == 0
    shown = capsys.readouterr().out
    found = rows(tmp_path / "profile-cpu.csv")
    places = [(row["batch_size"], row["program"], row["layer"], row["step"]) for row in found]
    assert len(set(places)) == len(places)
    steps = {program: {row["step"] for row in found if row["program"] == program}
             for program in ("original", "merged")}  # fmt: skip
    assert {"projections", "attention", "mlp"} <= steps["original"] < steps["merged"]
    assert {"matching", "merging"} <= steps["merged"] - steps["original"]
    assert {row["layer"] for row in found} == {"stem", "0", "1", "head"}
    for line in summed(found):
        own = [row for row in found if row["batch_size"] == line["batch_size"]]
        whole = sum(float(row["ms"]) for row in own if row["program"] == "merged")
        assert float(line["merged_ms"]) == pytest.approx(whole, rel=1e-3)
        shares = [float(line[step].rstrip("%")) for step in STEPS]
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
        added = sum(float(line[step].rstrip("%")) for step in ADDED)
        assert float(line["added"].rstrip("%")) == pytest.approx(added, abs=0.3)
        assert line["added"] in shown
    assert bench("--suite", "profile", "--out", tmp_path, "--no-plots") == 0
    assert rows(tmp_path / "profile-cpu.csv") == found, "rows that are there stay as they are"


def test_the_help_names_all_suites() -> None:
    assert cases.CPU.keys() == SMALL.keys() == cases.ACCELERATOR.keys()
    (option,) = get_args(bench_command.Names)[1:]
    assert option.help.rstrip(".").rpartition(" ")[2].split(",") == list(SMALL)


def test_results_go_to_the_clone_or_to_outputs(tmp_path: Path) -> None:
    assert suites.default_folder() == Path("outputs")
    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    assert suites.default_folder() == Path("outputs"), "somebody else's docs"
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "lift.py").touch()
    assert suites.default_folder() == Path("docs/benchmarks")


def test_the_real_suites_name_models_that_exist(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for known in (cases.ACCELERATOR, CPU):
        for suite in known.values():
            keys = [case.key for case in suite.cases]
            assert len(keys) == len(set(keys)), "two rows with one key"
            assert all(timm.is_model(case.model) for case in suite.cases)
    with pytest.raises(CliError, match="closest: memory"):
        cases.chosen("memori", "cuda")
    setup = figures.Setup("cpu", "amp", torch.bfloat16, 1, 0)
    with pytest.raises(CliError, match="--amp: the suite profile"):
        suites.run("all", setup, tmp_path, False, None, False)


@pytest.mark.compiler
@pytest.mark.slow
def test_compiled_against_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "CPU", cases._suites(SMALL | {"targets": [tiny(mode="default")]}))
    assert bench("--suite", "targets", "--out", tmp_path, "--no-plots") == 0
    (row,) = rows(tmp_path / "targets-cpu.csv")
    assert row["mode"] == "default"
    assert float(row["original_compile_s"]) > 0
    assert float(row["transformed_compile_s"]) > 0
