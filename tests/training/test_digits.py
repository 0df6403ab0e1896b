"""The example runs, and the page shows the figures that are in its file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_file(digits: ModuleType) -> None:
    results = json.loads((ROOT / "docs/benchmarks/digits.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert digits.table(results) in page
    assert results["model"] == json.loads(json.dumps(digits.MODEL))
    assert (results["train_images"], results["test_images"]) == (1347, 450)


def test_it_shows_what_it_claims() -> None:
    """Something is lost off the shelf, and training with merging wins most of it back."""
    results = json.loads((ROOT / "docs/benchmarks/digits.json").read_text(encoding="utf-8"))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    rows = {row["r"]: row for row in results["rows"]}
    base = mean(rows[0]["trained"])
    for r in (16, 32):
        lost = base - mean(rows[r]["off_the_shelf"])
        left = base - mean(rows[r]["trained"])
        assert lost > 5
        assert left < lost / 4


def test_it_runs(digits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = digits.digits()
    assert data.train[0].shape == (1347, 1, 16, 16)
    small = digits.Digits(
        (data.train[0][:64], data.train[1][:64]), (data.test[0][:32], data.test[1][:32])
    )
    digits.digits = lambda: small
    out, page = tmp_path / "digits.json", tmp_path / "page.md"
    page.write_text(f"before\n{digits.MARKS[0]}\nold\n{digits.MARKS[1]}\nafter\n", encoding="utf-8")
    digits.main(["--r=16", "--epochs=1", "--seeds=1", "--rounds=1", f"--out={out}",
                 f"--page={page}"])  # fmt: skip
    results = json.loads(out.read_text(encoding="utf-8"))
    assert [row["tokens"] for row in results["rows"]] == [[64] * 4, [48, 32, 16, 8]]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert digits.table(results) in text
    assert "off the shelf" in capsys.readouterr().out
