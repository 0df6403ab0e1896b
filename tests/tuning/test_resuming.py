"""A search that was interrupted, or is asked for another goal, goes on from its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tome_fx
from tests.tiny import tiny
from tests.tuning.common import DEPTH, SIZE, Machine, World, kept, model, odd, pictures, plain, seen
from tome_fx.tuning.tune import search

WORLD = World((0.5, 0.1, 0.7, 0.2, 0.05))


class Interrupted(Exception):
    pass


def stops_after(steps: int) -> Any:
    left = iter(range(steps))

    def advance(note: str) -> None:
        if next(left, None) is None:
            raise Interrupted

    return advance


@pytest.mark.parametrize("goal", [(1.4, None), (None, 0.1)])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 14, 25])
def test_an_interrupted_search_goes_on(
    steps: int, goal: tuple[float | None, float | None], tmp_path: Path
) -> None:
    machine = Machine(odd)
    whole = WORLD.trial(machine)
    answer = search(whole, *goal)
    looked, measured = list(machine.looked), list(machine.measured)
    machine.forget()
    trial = WORLD.trial(machine, kept(tmp_path / "state.json"))
    trial.advance = stops_after(steps)
    with pytest.raises(Interrupted):
        search(trial, *goal)
    assert 0 < len(machine.looked) < len(looked)
    again = WORLD.trial(machine, kept(tmp_path / "state.json"))
    assert search(again, *goal) == answer
    assert machine.looked == looked  # nothing twice, nothing more
    assert machine.measured == measured
    assert (again.looked, again.clock) == (whole.looked, whole.clock)


def test_another_goal_starts_with_what_is_known(tmp_path: Path) -> None:
    machine = Machine(plain)
    alone = search(WORLD.trial(machine), 1.35, None)
    count = len(machine.looked)
    search(WORLD.trial(machine, kept(tmp_path / "state.json")), 1.4, None)
    machine.forget()
    assert search(WORLD.trial(machine, kept(tmp_path / "state.json")), 1.35, None) == alone
    assert len(machine.looked) < count


def test_a_tuning_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(plain).install(monkeypatch)
    state, goal = tmp_path / "state.json", {"target_speedup": 1.2}
    with pytest.raises(Interrupted):
        seen(goal, state=state, progress=stops_after(6))
    assert len(machine.looked) > 3
    found = seen(goal, state=state)
    assert [point.r for point in found.curve] == machine.looked
    assert len(machine.measured) == len(set(machine.measured))
    assert seen(goal, state=state) == found
    assert len(machine.looked) == len(found.curve)
    content = json.loads(state.read_text())
    assert [tuple(entry["r"]) for entry in content["drifts"]] == machine.looked
    assert [tuple(entry["r"]) for entry in content["speeds"]] == machine.measured


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": pictures(seed=1)}, "images"),
        ({"model": tiny(depth=DEPTH, img_size=SIZE, qkv_bias=False)}, "weights"),
        ({"batch_size": 3}, "batches"),
        ({"prop_attn": False}, "prop_attn True, not False"),
        ({"compiled": False}, "compiled True, not False"),
        ({"rounds": 3}, "rounds 10, not 3"),
    ],
)
def test_a_state_of_another_run_is_refused(
    change: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(plain).install(monkeypatch)
    state, goal = tmp_path / "state.json", {"target_speedup": 1.2}
    with pytest.raises(Interrupted):
        seen(goal, state=state, progress=stops_after(0), model=model())
    before = state.read_text()
    with pytest.raises(tome_fx.ConfigError, match=f"is of a run with {named}"):
        seen(goal, state=state, **change)
    assert state.read_text() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "another"}', "\x00"])
def test_what_is_no_state_is_refused(text: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(text)
    with pytest.raises(tome_fx.ConfigError, match=r"is no state of tome_fx\.tune"):
        kept(state)
    assert state.read_text() == text


def test_a_state_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(tome_fx.ConfigError, match="cannot be written"):
        kept(tmp_path / "none" / "state.json")
