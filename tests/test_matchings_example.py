"""The example runs, and the page shows the figures that are in its file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("matchings")


def test_the_page_shows_the_file(example: ModuleType) -> None:
    results = json.loads((ROOT / "docs/benchmarks/matchings.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/matching.md").read_text(encoding="utf-8")
    assert example.table(results) in page
    assert list(results["rows"]) == [name for name, _ in example.MATCHINGS]


def test_it_runs(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = example.digits()
    small = type(data)(*((x[:32], y[:32]) for x, y in (data.train, data.test)))
    monkeypatch.setattr(example, "digits", lambda: small)
    out, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text(f"a\n{example.MARKS[0]}\nold\n{example.MARKS[1]}\nb\n", encoding="utf-8")
    example.main(["--r=16", "--epochs=1", "--seeds=1", f"--out={out}", f"--page={page}"])
    text = page.read_text(encoding="utf-8")
    assert example.table(json.loads(out.read_text(encoding="utf-8"))) in text
    assert "old" not in text
