"""The figures are those of the models, in every form of the results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch.utils.data import IterableDataset

import tome_fx
from tests.cli.validating.common import COUNTS, KWARGS, NAME, TIMED, Run, paint, rows
from tome_fx.cli import evaluate, merging
from tome_fx.cli.models import ModelSpec, load
from tome_fx.cli.preprocess import to_batch


def test_results_are_those_of_the_models_on_each_image(validate: Run, data: Path) -> None:
    base, merged = rows(validate(data, "--r", 20, "-b", 4, "--json"))
    spec = ModelSpec(NAME, img_size=32, num_classes=3, model_kwargs=KWARGS)
    loaded = load(spec)
    fast = tome_fx.transform(loaded.model, 20, example_inputs=loaded.example(), min_ratio=0)
    files = sorted(data.rglob("*.png"))
    x = to_batch([Image.open(file) for file in files], loaded.config)
    labels = torch.tensor([int(file.parent.name[1:]) for file in files])
    with torch.inference_mode():
        before, after = loaded.model(x), fast(x)
    for row, logits in ((base, before), (merged, after)):
        top1 = 100 * float((logits.argmax(1) == labels).float().mean())
        assert row["top1"] == pytest.approx(top1, abs=1e-3)
        assert row["top1"] + row["top1_err"] == pytest.approx(100)
        assert row["top5"] == 100  # of three classes
        agree = float((logits.argmax(1) == before.argmax(1)).float().mean())
        assert row["agreement"] == pytest.approx(agree)
        distance = ((logits - before).norm(dim=1) / before.norm(dim=1)).mean()
        assert row["logit_distance"] == pytest.approx(float(distance), rel=1e-3, abs=1e-6)
        assert row["images"] == sum(COUNTS)
        assert row[TIMED] > 0
    assert (base["r"], base["ratio"], base["agreement"], base["logit_distance"]) == ("0", 1, 1, 0)
    assert merged["ratio"] == pytest.approx(fast.report.flop_ratio)


def test_r_zero_alone_is_the_original(validate: Run, data: Path) -> None:
    (row,) = rows(validate(data, "--r", 0, "--json"))
    assert (row["r"], row["agreement"]) == ("0", 1.0)


def test_programs_are_those_of_a_transform_each() -> None:
    loaded = load(ModelSpec(NAME, img_size=32, model_kwargs=KWARGS))
    options = merging.MergeOptions(prop_attn=False)
    rs: dict[str, Any] = {"8": 8, "[0,0]": [0, 0], "0.1": 0.1}
    found = evaluate.contenders(loaded, rs, options)
    x = loaded.example(3)
    for contender, r in zip(found[1:], rs.values(), strict=True):
        wanted = merging.transform(loaded, r, options)
        assert torch.equal(contender.module(x), wanted(x))
        assert contender.ratio == wanted.report.flop_ratio
    assert torch.equal(found[2].module(x), loaded.model(x))


def test_csv_has_the_names_of_timm(validate: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    out = validate(data, "--r", "8,20", "-b", 4, "--results-file", path, "--crop-pct", 0.8)
    assert f"saved: {path}" in out
    assert "agreement" in out
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["r"] for line in lines] == ["0", "8", "20"]
    shared = {"top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct"}
    assert {*shared, "interpolation", "model", "ratio", TIMED} <= lines[0].keys()
    assert (lines[0]["img_size"], lines[0]["crop_pct"]) == ("32", "0.8")


def test_json_file(validate: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    validate(data, "--r", 8, "--results-file", path, "--results-format", "json", "--amp")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [row["r"] for row in found["results"]] == ["0", "8"]
    assert found["environment"]["precision"] == "amp bfloat16"


def test_without_labels_a_plain_folder_will_do(validate: Run, tmp_path: Path) -> None:
    for seed in range(3):
        paint(tmp_path / "plain" / f"{seed}.png", seed)
    for flags in ([], ["--json"]):
        out = validate(tmp_path / "plain", "--r", 8, "--labels", "none", *flags)
        assert "top" not in out
    assert all(row["images"] == 3 for row in rows(out))


def test_a_stream_is_read_to_its_end(
    validate: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = timm.data.create_dataset("", root=str(data), split="val")

    class Stream(IterableDataset[Any]):
        transform: Any = None

        def __iter__(self) -> Any:
            folder.transform = self.transform
            return iter(folder[index] for index in range(len(folder)))

    wanted = rows(validate(data, "--r", 8, "-b", 4, "--json"), but=(TIMED,))
    monkeypatch.setattr(timm.data, "create_dataset", lambda **_: Stream())
    args = ("--dataset", "wds/some", "--r", 8, "-b", 4, "--log-freq", 3, "--json")
    assert rows(validate(*args), but=(TIMED,)) == wanted


def test_a_last_batch_is_filled_up_for_a_compiled_program() -> None:
    x = torch.arange(3.0).reshape(3, 1, 1, 1)
    assert evaluate.filled(x, 5).flatten().tolist() == [0, 1, 2, 2, 2]
    assert evaluate.filled(x, 3) is x


def test_torch_compile_may_go_without_a_backend(validate: Run, data: Path) -> None:
    plain = rows(validate(data, "--r", 8, "-b", 4, "--json"), but=(TIMED,))
    found = rows(validate(data, "--r", 8, "-b", 4, "--torchcompile", "eager", "--json"))
    for row, wanted in zip(found, plain, strict=True):
        assert row["top1"] == wanted["top1"]
        assert row["logit_distance"] == pytest.approx(wanted["logit_distance"], abs=1e-5)
