"""Schedules: what the user writes -> how many tokens go away in each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tome_fx.errors import ConfigError
from tome_fx.options import Settings, checked
from tome_fx.schedule import resolve, share


def clip(wanted: list[int], tokens: int) -> tuple[int, ...]:
    """The paper's clipping: half of the tokens that are left."""
    clipped = []
    for r in wanted:
        clipped.append(min(r, tokens // 2))
        tokens -= clipped[-1]
    return tuple(clipped)


@pytest.mark.parametrize(
    ("r", "tokens", "layers", "left"),
    [  # the stream tokens that are left, from the tokens out of the paper's models less the class
        (8, 196, 12, 100),
        (13, 196, 12, 40),
        (16, 196, 12, 10),
        ((13, -1.0), 196, 12, 45),
        ((16, -1.0), 196, 12, 9),
        (4, 196, 24, 100),
        (7, 196, 24, 28),
        (8, 196, 24, 6),
        ((8, -1.0), 196, 24, 15),
        (5, 256, 32, 96),
        (7, 256, 32, 32),
        (8, 256, 32, 4),
        (20, 576, 24, 96),
        (23, 576, 24, 24),
        (40, 1024, 24, 64),
        (40, 1369, 32, 89),
    ],
)
def test_tokens_that_the_paper_leaves(r: Any, tokens: int, layers: int, left: int) -> None:
    assert tokens - sum(resolve(r, tokens, layers, "truncate")) == left


def test_a_falling_schedule_is_truncated_as_in_the_paper() -> None:
    schedule = resolve((16, -1.0), 196, 12, "truncate")
    assert schedule == (32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)
    assert sum(schedule) == 187


def test_the_exact_schedule_has_the_sum_that_was_asked_for() -> None:
    schedule = resolve((16, -1.0), 196, 12, "exact")
    assert sum(schedule) == 16 * 12
    assert list(schedule) == sorted(schedule, reverse=True)
    assert schedule[0] == 32


@pytest.mark.parametrize(("inflect", "first", "last"), [(1.0, 0, 12), (-1.0, 12, 0), (0.0, 6, 6)])
def test_inflection_sets_the_ends(inflect: float, first: int, last: int) -> None:
    schedule = resolve((6, inflect), 1000, 5, "truncate")
    assert (schedule[0], schedule[-1]) == (first, last)


@examples(300)
@given(
    st.integers(0, 20), st.floats(-1, 1), st.integers(1, 32), st.sampled_from(["truncate", "exact"])
)
def test_sums(r: int, inflect: float, layers: int, rounding: str) -> None:
    """With tokens to spare the exact sum is r times layers; truncation loses under one a layer."""
    schedule = resolve((r, inflect), 10**6, layers, rounding)
    assert len(schedule) == layers
    assert all(isinstance(n, int) and n >= 0 for n in schedule)
    if layers == 1:
        return  # the ends of a line through one point
    if rounding == "exact":
        assert sum(schedule) == r * layers
    else:
        assert r * layers - layers < sum(schedule) <= r * layers


@examples(300)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 100))
def test_a_list_is_taken_as_it_is_and_clipped(wanted: list[int], tokens: int) -> None:
    for rounding in ("truncate", "exact"):
        assert resolve(wanted, tokens, len(wanted), rounding) == clip(wanted, tokens)


@examples(300)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 24))
def test_never_more_than_half(r: int, tokens: int, layers: int) -> None:
    assert resolve(r, tokens, layers, "truncate") == clip([r] * layers, tokens)


@examples(300)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 300), st.integers(1, 12))
def test_a_share_takes_that_part_of_what_is_left(share: float, tokens: int, layers: int) -> None:
    for r in resolve(share, tokens, layers, "truncate"):
        assert abs(r - min(share * tokens, tokens // 2)) < 1
        assert 0 <= r <= tokens // 2
        tokens -= r


@pytest.mark.parametrize("nothing", [0, 0.0, (0, -1.0), [0, 0, 0]])
def test_nothing_to_remove(nothing: Any) -> None:
    for rounding in ("truncate", "exact"):
        assert resolve(nothing, 196, 3, rounding) == (0, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        -1,
        -0.5,
        1.0,
        1.5,
        float("nan"),
        float("inf"),
        True,
        False,
        "16",
        None,
        [1, 2, 3, 4],
        [1, -2],
        [1, True],
        [1, "2"],
        [1, float("nan")],
        (-3, 1.0),
        (True, 1.0),
        (16, float("nan")),
        (16, "1"),
        {8: 1},
    ],
    ids=repr,
)
def test_errors_name_the_field_and_the_value(wrong: Any) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(wrong, 196, 3, "truncate")
    text = str(error.value)
    assert text.startswith("r")
    values = wrong if isinstance(wrong, list | tuple) else [wrong]
    assert repr(wrong) in text or any(repr(value) in text for value in values)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_share_may_be_a_number_of_numpy(kind: Any) -> None:
    assert share(kind(0.25)) == 0.25
    assert type(share(kind(0.25))) is float
    assert resolve(kind(0.25), 196, 2) == resolve(0.25, 196, 2)
    assert resolve((8, kind(-1.0)), 196, 3) == resolve((8, -1.0), 196, 3)
    with pytest.raises(ConfigError, match=r"is not a share of the tokens"):
        resolve(kind(1.5), 196, 2)
    settings = checked(Settings(kind(0.25)))
    assert (settings.r, type(settings.r)) == (0.25, float)


def test_a_list_longer_than_the_model_is_deep_names_both() -> None:
    with pytest.raises(ConfigError, match=r"(?s)4.*3"):
        resolve([1, 2, 3, 4], 196, 3, "truncate")


def test_unknown_rounding() -> None:
    with pytest.raises(ConfigError, match=r"(?s)rounding.*nearest.*truncate.*exact"):
        resolve(8, 196, 12, "nearest")
