"""The promises of a search, on models and machines that are formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.common import Law, Machine, World, cheap, odd, plain
from tome_fx.errors import ConfigError
from tome_fx.tuning.costs import Schedule
from tome_fx.tuning.search import CONSTANT
from tome_fx.tuning.trial import Trial
from tome_fx.tuning.tune import search

WORLDS = st.builds(
    World,
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=14).map(tuple),
    st.integers(16, 250),
)
LAWS = st.sampled_from([plain, cheap, odd])
FALLING = World((1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02))


def speed_of(trial: Trial, r: tuple[int, ...]) -> float:
    return trial.memo.speeds[r].speedup


def answer_of(trial: Trial, *goal: float | None) -> tuple[Schedule | None, str]:
    try:
        return search(trial, *goal), ""
    except ConfigError as error:
        return None, str(error)


@given(WORLDS, LAWS, st.floats(1.05, 1.6))
def test_the_target_is_met_with_no_more_drift_than_a_constant_r(
    world: World, law: Law, target: float
) -> None:
    machine = Machine(law)
    trial = world.trial(machine)
    r, told = answer_of(trial, target, None)
    if r is None:
        assert "was not reached" in told
        assert all(speed_of(trial, one) < target for one in trial.measured)
        return
    assert 1.0 / law(trial.memo.drifts[r][1], r) == speed_of(trial, r) >= target
    rivals = [one for one in trial.measured if speed_of(trial, one) >= target]
    assert all(world.drift(r) <= world.drift(one) for one in rivals)
    assert len(machine.measured) == len(set(machine.measured)) <= 6
    assert len(machine.looked) == len(set(machine.looked)) == len(trial.looked) <= 40 + 40


@given(WORLDS, LAWS, st.floats(0.02, 1.0))
def test_the_drift_stays_within_the_limit_and_no_constant_r_within_it_is_faster(
    world: World, law: Law, limit: float
) -> None:
    trial = world.trial(Machine(law))
    r, told = answer_of(trial, None, limit)
    if r is None:
        assert "leaves nothing to merge" in told or "not faster" in told
        return
    assert 0.0 < world.drift(r) <= limit
    assert speed_of(trial, r) == max(speed_of(trial, one) for one in trial.measured) > 1.0
    constant = [one for one in trial.looked if len(set(one)) == 1 and world.drift(one) <= limit]
    assert all(
        speed_of(trial, r) >= 1.0 / law(trial.memo.drifts[one][1], one) * 0.95 for one in constant
    )


@pytest.mark.parametrize("law", [plain, cheap])
@pytest.mark.parametrize("target", [1.2, 1.5, 1.8])
def test_a_model_whose_late_layers_bear_more_merges_late(law: Law, target: float) -> None:
    trial = FALLING.trial(Machine(law))
    r = search(trial, target, None)
    fast_enough = (
        FALLING.drift(one)
        for one in ([k] * 8 for k in range(1, 60))
        if 1.0 / law(FALLING.share(FALLING.plan(one)) * 1.001, one) >= target
    )
    assert FALLING.drift(r) < 0.95 * next(fast_enough)
    assert speed_of(trial, r) <= 1.1 * target  # and no faster than it has to be
    assert CONSTANT in {trial.looked[one] for one in trial.measured}


def test_moves_find_what_no_known_shape_has() -> None:
    world = World((1.0, 1.0, 0.02, 1.0, 1.0, 0.02, 0.02, 1.0))
    small, large = (world.trial(Machine(cheap), budget=budget) for budget in (10, 80))
    rough, fine = search(small, 1.4, None), search(large, 1.4, None)
    assert world.drift(fine) < 0.7 * world.drift(rough)
    assert len(small.looked) < len(large.looked)


def test_a_drift_limit_leaves_little_unused() -> None:
    r = search(FALLING.trial(Machine(plain)), None, 0.1)
    assert 0.09 < FALLING.drift(r) <= 0.1


def test_a_speed_out_of_reach_is_told_with_the_best() -> None:
    trial = FALLING.trial(Machine(lambda share, _: 0.8 + 0.2 * share))
    with pytest.raises(ConfigError, match=r"=2 was not reached: .* 1\.2\d times as fast"):
        search(trial, 2.0, None)


def test_a_drift_below_any_merging_is_told_with_the_least() -> None:
    with pytest.raises(ConfigError, match=r"max_drift=1e-06 .* drifts by 0\.0"):
        search(FALLING.trial(Machine(plain)), None, 1e-6)


def test_merging_that_only_costs_is_told() -> None:
    trial = FALLING.trial(Machine(lambda share, _: 1.2 - 0.1 * share))
    with pytest.raises(ConfigError, match=r"not faster than the original here: .* 0\.9"):
        search(trial, None, 0.1)


def test_the_curve_has_weaker_schedules_of_both_kinds() -> None:
    trial = FALLING.trial(Machine(plain))
    answer = search(trial, 1.6, None)
    for name in (CONSTANT, trial.looked[answer]):
        times = [trial.time(r) for r, shape in trial.looked.items() if shape == name]
        assert sum(trial.time(answer) < time < 1.0 for time in times) >= 3
