"""What a tuning leaves behind: recipe, curve as data, plot."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import tome_fx
from tests.tuning.common import Machine, model, pictures, plain, seen


@pytest.fixture(scope="module")
def found() -> tome_fx.Tuned:
    with pytest.MonkeyPatch.context() as patch:
        Machine(plain).install(patch)
        return seen({"target_speedup": 1.2})


def test_the_recipe_makes_the_same_module(found: tome_fx.Tuned, tmp_path: Path) -> None:
    path = found.save_recipe(tmp_path / "fast.json")
    again = tome_fx.apply_recipe(model(), path)
    assert again.schedule == found.schedule
    assert torch.equal(again(pictures()), found.module(pictures()))
    by_hand = tome_fx.transform(model(), found.r, min_ratio=0.0)
    assert torch.equal(by_hand(pictures()), found.module(pictures()))


def test_the_curve_as_csv_and_as_json(found: tome_fx.Tuned, tmp_path: Path) -> None:
    with found.save_curve(tmp_path / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    records = json.loads(found.save_curve(tmp_path / "curve.json").read_text())
    assert len(rows) == len(records) == len(found.curve)
    for row, record, point in zip(rows, records, found.curve, strict=True):
        assert tuple(map(int, row["r"].split())) == tuple(record["r"]) == point.r
        assert float(row["drift"]) == record["drift"] == point.drift
        assert record["speedup"] == point.speedup
        assert row["speedup"] == ("" if point.speedup is None else str(point.speedup))


def test_infinite_drift_is_null_in_json(found: tome_fx.Tuned, tmp_path: Path) -> None:
    odd = replace(found, curve=(replace(found.curve[0], drift=float("inf")),))
    assert json.loads(odd.save_curve(tmp_path / "a.json").read_text())[0]["drift"] is None
    ElementTree.parse(odd.plot(tmp_path / "a.svg"))


def test_the_plot_has_a_dot_for_each_point(found: tome_fx.Tuned, tmp_path: Path) -> None:
    root = ElementTree.parse(found.plot(tmp_path / "curve.svg")).getroot()
    tag = "{http://www.w3.org/2000/svg}"
    dots = [dot for dot in root.iter(f"{tag}circle") if dot.find(f"{tag}title") is not None]
    assert len(dots) == len(found.curve)
    measured = [dot for dot in dots if dot.get("fill") != "white"]
    assert len(measured) == sum(point.speedup is not None for point in found.curve)
    for dot in root.iter(f"{tag}circle"):
        assert 0 <= float(dot.get("cx", "nan")) <= 640
        assert 0 <= float(dot.get("cy", "nan")) <= 400


def test_faster_and_further_are_to_the_right_and_up(found: tome_fx.Tuned, tmp_path: Path) -> None:
    root = ElementTree.parse(found.plot(tmp_path / "curve.svg")).getroot()
    tag = "{http://www.w3.org/2000/svg}"
    dots = [dot for dot in root.iter(f"{tag}circle") if dot.find(f"{tag}title") is not None]
    for dot, point in zip(dots, found.curve, strict=True):
        for other, second in zip(dots, found.curve, strict=True):
            if point.speed > second.speed + 0.01:
                assert float(dot.get("cx", "nan")) > float(other.get("cx", "nan"))
            if point.drift > second.drift + 0.01:
                assert float(dot.get("cy", "nan")) < float(other.get("cy", "nan"))


@pytest.mark.parametrize("name", ["curve.txt", "curve.png", "curve"])
def test_other_kinds_of_files_are_refused(found: tome_fx.Tuned, name: str, tmp_path: Path) -> None:
    with pytest.raises(tome_fx.ConfigError, match=r"\.csv or \.json"):
        found.save_curve(tmp_path / name)
    with pytest.raises(tome_fx.ConfigError, match=r"\.svg"):
        found.plot(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_place_that_takes_no_file(found: tome_fx.Tuned, tmp_path: Path) -> None:
    for write, name in ((found.save_curve, "curve.csv"), (found.plot, "plot.svg")):
        with pytest.raises(tome_fx.ConfigError, match=f"{name} cannot be written: No such"):
            write(tmp_path / "none" / name)
        with pytest.raises(TypeError, match="a path, not NoneType"):
            write(None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["file/x", "n" * 300, "a\0b"], ids=["below a file", "long", "null"]
)
def test_names_that_no_disk_takes(found: tome_fx.Tuned, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write, suffix in ((found.save_curve, ".csv"), (found.plot, ".svg")):
        with pytest.raises(tome_fx.ConfigError, match=r"cannot be written|names no file"):
            write(tmp_path / f"{name}{suffix}")
    with pytest.raises(tome_fx.ConfigError, match=r"cannot be written|names no file"):
        found.save_recipe(tmp_path / f"{name}.json", weights=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_just_fits(found: tome_fx.Tuned, tmp_path: Path) -> None:
    assert found.save_curve(tmp_path / ("n" * 251 + ".csv")).is_file()


def test_what_stands_there_stays_what_it_is(found: tome_fx.Tuned, tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.touch(mode=0o600)
    link.symlink_to(real)
    found.save_curve(link)
    assert link.is_symlink()
    assert real.read_text().startswith("r,")
    assert real.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "real.csv"]


def test_a_pipe_is_written_to(found: tome_fx.Tuned, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as reader:
        found.save_curve(pipe)
        assert pipe.is_fifo()
        assert reader.readline().startswith("r,")
