"""The timing engine, on a clock of its own."""

from __future__ import annotations

import pytest

from tome_fx.measuring.timing import Timing, calls_needed, interleaved, paired_speedup, speedup


class Machine:
    """A clock that only calls move on, and a record of who was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def clock(self) -> float:
        return self.now

    def program(self, name: str, seconds: float) -> tuple[str, object]:
        def call() -> None:
            self.called.append(name)
            self.now += seconds

        return name, call


def test_every_callable_takes_its_turn_in_every_round() -> None:
    machine = Machine()
    calls = dict([machine.program("a", 1.0), machine.program("b", 2.0), machine.program("c", 3.0)])
    found = interleaved(calls, rounds=3, warmup=1, clock=machine.clock)
    assert "".join(machine.called) == "abc" + "abc" + "cba" + "abc"
    assert found == {
        "a": Timing((1.0, 1.0, 1.0)),
        "b": Timing((2.0, 2.0, 2.0)),
        "c": Timing((3.0, 3.0, 3.0)),
    }


def test_warm_up_is_not_counted() -> None:
    machine = Machine()
    seconds = iter([100.0, 50.0, 1.0, 1.0])

    def call() -> None:
        machine.now += next(seconds)

    found = interleaved({"a": call}, rounds=2, warmup=2, clock=machine.clock)
    assert found["a"].samples == (1.0, 1.0)


def test_short_calls_are_repeated_to_fill_a_sample() -> None:
    machine = Machine()
    calls = dict([machine.program("short", 0.25), machine.program("long", 4.0)])
    found = interleaved(calls, rounds=1, warmup=1, min_sample=1.0, clock=machine.clock)
    assert machine.called == ["short", "long", *["short"] * 4, "long"]
    assert found["short"].samples == (0.25,)
    assert found["long"].samples == (4.0,)


def test_the_device_is_waited_for_inside_the_sample() -> None:
    machine = Machine()
    pending = 0.0

    def launch() -> None:
        nonlocal pending
        pending += 5.0

    def synchronize() -> None:
        nonlocal pending
        machine.now += pending
        pending = 0.0

    found = interleaved(
        {"a": launch}, rounds=2, warmup=0, synchronize=synchronize, clock=machine.clock
    )
    assert found["a"].samples == (5.0, 5.0)


def test_progress_is_told_once_a_sample() -> None:
    machine = Machine()
    ticks: list[int] = []
    calls = dict([machine.program("a", 1.0), machine.program("b", 1.0)])
    interleaved(calls, 3, 2, clock=machine.clock, progress=lambda: ticks.append(1))
    assert len(ticks) == (3 + 2) * 2


def test_an_error_of_a_callable_is_not_swallowed() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        interleaved({"a": fail}, rounds=1, warmup=0)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (-1, 0), (1, -1)])
def test_impossible_counts_are_refused(rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleaved({"a": lambda: None}, rounds, warmup)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        interleaved({}, 1, 1)


def test_median_and_spread() -> None:
    timing = Timing((5.0, 1.0, 2.0, 3.0, 4.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.iqr == 2.0


def test_a_single_sample_has_no_spread() -> None:
    assert Timing((2.0,)).quartiles == (2.0, 2.0)
    assert Timing((2.0,)).iqr == 0.0


def test_speedup_is_the_ratio_of_the_medians() -> None:
    assert speedup(Timing((4.0, 4.0, 40.0)), Timing((2.0, 2.0, 2.0))) == 2.0


def test_paired_speedup_forgives_a_slow_round() -> None:
    before, after = Timing((4.0, 40.0, 4.0)), Timing((2.0, 20.0, 2.0))
    assert paired_speedup(before, after) == Timing((2.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("seconds", "wanted", "count"),
    [(0.1, 0.0, 1), (0.1, 1.0, 10), (5.0, 1.0, 1), (0.0, 1.0, 1000), (0.3, 1.0, 4)],
)
def test_calls_needed(seconds: float, wanted: float, count: int) -> None:
    assert calls_needed(seconds, wanted) == count
