"""What was counted is not counted again, and nothing foreign is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.validating.common import MODEL, TIMED, Run, paint, rows
from tome_fx.cli import evaluate, main, partial


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Interrupt after so many batches; return the list of what runs, by r."""
    ran: list[str] = []
    compare = evaluate._compare

    def counted(found: Any, rs: Any, *rest: Any) -> Any:
        if len(ran) == batches:
            raise KeyboardInterrupt
        ran.append(",".join(rs))
        return compare(found, rs, *rest)

    monkeypatch.setattr(evaluate, "_compare", counted)
    return ran


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_run_goes_on(
    validate: Run, data: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    args = [data, "--r", "8,20", "-b", 3, "--log-freq", 2, "--json"]
    wanted = rows(validate(*args), but=(TIMED,))
    args += ["--results-file", path]
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        assert main.run(["validate", *map(str, args), *MODEL]) == 130
    assert not path.exists()
    ran = stop_after(99, monkeypatch)
    assert rows(validate(*args), but=(TIMED,)) == wanted
    assert ran == ["0,8,20"] * (5 - stop // 2 * 2)  # what is not kept is done again


def test_what_is_done_is_not_done_again(
    validate: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [data, "-b", 4, "--results-file", tmp_path / "a.csv", "--json", "--r"]
    first = rows(validate(*args, 8))
    ran = stop_after(99, monkeypatch)
    assert rows(validate(*args, 8)) == first
    assert ran == []
    both = rows(validate(*args, "8,20"))
    assert ran == ["20"] * 4
    assert both[:2] == first
    alone = rows(validate(data, "-b", 4, "--json", "--r", 20), but=(TIMED,))
    assert {**both[2], TIMED: 0} == {**alone[1], TIMED: 0}


def test_partial_sums_of_other_runs_are_refused(
    validate: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [data, "-b", 4, "--results-file", tmp_path / "a.csv", "--r", 8]
    kept = partial.path_of(tmp_path / "a.csv")
    validate(*args)

    def refusal(*more: object) -> str:
        assert main.run(["validate", *map(str, [*args, *more]), *MODEL]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert str(kept) in err
        return err

    assert "with batch_size 4, not 2" in refusal("-b", 2)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def pairs(metric, r):\n"
        "    return 2 * torch.arange(r), 2 * torch.arange(r) + 1\n",
        encoding="utf-8",
    )
    assert "with matching None, not pairs" in refusal("--matching", f"{tmp_path}/mine.py:pairs")
    paint(data / "val" / "n2" / "9.png", 1)
    assert "with files" in refusal()
    validate(*args, "--fresh")
    content = json.loads(kept.read_text(encoding="utf-8"))
    for wrong in ("{", "[]", "{}", json.dumps(content).replace('"images": 14', '"images": 3')):
        kept.write_text(wrong, encoding="utf-8")
        assert "not the partial sums" in refusal()
    validate(*args, "--no-resume")
    validate(*args)


def test_an_r_that_was_begun_joins_the_others() -> None:
    def at(images: int) -> evaluate.Sums:
        return evaluate.Sums(images=images)

    found = evaluate.segments({"0": at(10), "8": at(4), "13": at(0)}, 10)
    assert found == [evaluate.Segment(0, 4, ("13",)), evaluate.Segment(4, 10, ("8", "13"))]
    assert evaluate.segments({"0": at(10)}, 10) == []
    assert evaluate.segments({"0": at(0)}, None) == [evaluate.Segment(0, None, ("0",))]
