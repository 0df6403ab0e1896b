"""What the default profile takes of many cases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import profiles


@pytest.fixture(autouse=True)
def _by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_some", lambda: True)


class Item(SimpleNamespace):
    """As pytest's: equal to itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def item(test: str, few: int | None = None, **lists: Any) -> Any:
    """A collected test with one case of each list."""
    marks = [pytest.mark.parametrize(name, []).mark for name in lists]
    return Item(
        nodeid=f"{test}[{'-'.join(map(str, lists.values()))}]",
        iter_markers=lambda name: iter(marks),
        get_closest_marker=lambda name: few and pytest.mark.few(few).mark,
        callspec=SimpleNamespace(params=lists),
    )


def kept(items: list[Any]) -> list[tuple[Any, ...]]:
    left_out = profiles.left_out(items)
    return [tuple(one.callspec.params.values()) for one in items if one not in left_out]


def test_a_board_has_each_row_and_each_column() -> None:
    assert kept([item("t", a=a, b=b) for a in "xyz" for b in (1, 2)]) == [
        ("x", 1), ("y", 2), ("z", 1),
    ]  # fmt: skip


def test_of_three_lists_each_pair_is_there() -> None:
    found = kept([item("t", a=a, b=b, c=c) for a in "xy" for b in "mn" for c in "pq"])
    assert len(found) == 4
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len({(case[first], case[second]) for case in found}) == 4


@pytest.mark.parametrize("other", [{}, {"b": "alone"}])
def test_one_list_stays_whole(other: dict[str, str]) -> None:
    items = [item("t", a=a, **other) for a in "wxyz"]
    assert len(kept(items)) == 4


def test_each_test_has_a_board_of_its_own() -> None:
    items = [item(test, a=a, b=b) for test in ("s", "t") for a in "xy" for b in "xy"]
    assert kept(items) == [("x", "x"), ("y", "y")] * 2


def test_a_few_are_the_farthest_from_each_other() -> None:
    assert kept([item("t", few=3, a=a) for a in range(9)]) == [(0,), (4,), (8,)]
    assert kept([item("t", few=3, a=a) for a in range(2)]) == [(0,), (1,)]


def test_a_few_of_two_lists_have_the_most_of_both() -> None:
    found = kept([item("t", few=3, a=a, b=b) for a in "vwxyz" for b in (1, 2)])
    assert len({a for a, _ in found}) == 3
    assert {b for _, b in found} == {1, 2}


def test_the_other_profiles_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_some", lambda: False)
    assert len(kept([item("t", a=a, b=b) for a in "xy" for b in "xy"])) == 4
    assert len(kept([item("t", few=1, a=a) for a in "xyz"])) == 3
