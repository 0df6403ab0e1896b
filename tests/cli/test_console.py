"""Progress and JSON: what reaches stderr and stdout."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tome_fx.cli.console import print_json, stage
from tome_fx.cli.memory import highest, peak


def test_short_steps_leave_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("a step"):
        pass
    assert capsys.readouterr() == ("", "")


def test_long_steps_are_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("a step", total=2, after=0.05) as advance:
        time.sleep(0.2)
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "a step ..."
    assert second.startswith("a step: done in 0.")


def test_a_step_that_fails_says_nothing_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), stage("a step"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with stage("r=[1,2]", total=3) as advance:
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "r=[1,2]" in err
    assert "1/3" in err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), (float("inf"), 1.5)], "b": None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]], "b": None}


def test_highest_point_of_a_running_sum() -> None:
    assert highest([4, 4, -4, 2, -6]) == 8
    assert highest([]) == 0
    assert highest([-4, 3]) == 0


def test_peak_memory_on_a_cpu_is_what_was_held_at_once() -> None:
    import torch

    def call() -> None:
        for _ in range(3):
            a = torch.ones(2**20)  # 4 MiB
            b = a + 1  # and 4 more
            del a, b

    assert peak(call, torch.device("cpu")) == pytest.approx(8 * 2**20, abs=1000)
    assert peak(call, torch.device("meta")) is None
