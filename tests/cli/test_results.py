"""Rows on disk, and the tables made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tome_fx.cli import results, tables
from tome_fx.cli.failure import CliError
from tome_fx.cli.measure import Row, Settings
from tome_fx.cli.models import ModelSpec, load


def row(r: str, mode: str = "eager", median_ms: float = 10.0) -> Row:
    return Row(
        model="a_model",
        r=r,
        mode=mode,
        batch_size=8,
        img_size="224x224",
        median_ms=median_ms,
        q1_ms=9.0,
        q3_ms=11.0,
        iqr_ms=2.0,
        min_ms=8.0,
        samples_per_sec=800.0,
        speedup=1.9,
        speedup_q1=1.8,
        speedup_q3=2.0,
        gmacs=8.77,
        flop_ratio=2.0,
        flop_ratio_share=0.95,
        peak_memory_mib=None,
        compile_s=None,
    )


ROWS = [row(""), row("16"), row("16:-1")]


@pytest.mark.parametrize(
    ("name", "wanted", "kind"),
    [
        ("a.csv", None, "csv"),
        ("a.json", None, "json"),
        ("a.txt", None, "csv"),
        ("a.csv", "json", "json"),
    ],
)
def test_the_format_is_asked_for_or_follows_the_suffix(
    tmp_path: Path, name: str, wanted: str | None, kind: str
) -> None:
    assert results.choose_format(tmp_path / name, wanted) == kind


def test_files_that_cannot_be_written_are_refused_early(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.csv"):
        with pytest.raises(CliError, match="--results-file"):
            results.choose_format(path, None)
    with pytest.raises(CliError, match="not one of csv, json"):
        results.choose_format(None, "yaml")
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match="--output-dir"):
        results.make_folder(tmp_path / "file", "--output-dir")


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    around = {"torch": "2.0", "threads": 2}
    results.write(tmp_path / "a.csv", "csv", ROWS, around)
    results.write(tmp_path / "a.json", "json", ROWS, around)
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert document["environment"] == around
    assert len(lines) == len(document["results"]) == 3
    for line, found in zip(lines, document["results"], strict=True):
        wanted = {key: "" if value is None else str(value) for key, value in found.items()}
        assert line == wanted | {"torch": "2.0", "threads": "2"}


def test_the_environment_says_what_the_figures_depend_on() -> None:
    loaded = load(ModelSpec("test_vit"))
    around = results.environment(loaded, Settings(8, amp=torch.bfloat16))
    assert around["precision"] == "amp bfloat16"
    assert around["device"] == "cpu"
    assert around["threads"] == torch.get_num_threads()
    assert all(around[key] for key in ("tome_fx", "torch", "timm", "device_name", "memory"))


def test_lines_are_aligned() -> None:
    assert tables.plain([("a", "bc", "1"), ("abc", "b", "22")]) == "a    bc   1\nabc  b   22"


@pytest.mark.parametrize(("width", "terminal"), [(120, True), (40, True), (80, False)])
def test_no_figure_is_cut_off(
    capsys: pytest.CaptureFixture[str], width: int, terminal: bool
) -> None:
    rows = [row("", median_ms=12345.678), row("16", "compiled")]
    tables.print_results(rows, Console(force_terminal=terminal, width=width, no_color=True))
    out = capsys.readouterr().out
    for text in ("original", "12345.7", "r=16", "1.90x", "95%", "8.77", "compiled"):
        assert text in out
    assert "…" not in out
