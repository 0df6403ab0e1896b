"""How many examples hypothesis draws.

A test says what it needs by default, `@examples(200)`, and a heavier profile takes more:

    pytest                                    the default: the same examples on every run
    pytest --hypothesis-profile=whole         the same examples, all cases
    pytest --hypothesis-profile=thorough      50 times as many examples, at random, all cases

Of tests with several lists of cases the default takes every other one (`uncrossed`), and of those
that are marked so, `@pytest.mark.few(3)`, no more than that (`beyond_few`), or none at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, register_random, settings

F = TypeVar("F", bound=Callable[..., object])

SCALE = {"default": 1, "whole": 1, "thorough": 50}


class TorchRandom:
    """torch's generator as hypothesis wants it: seeded before each example, put back after.

    Every example thus starts from the same state; one that wants other numbers draws a seed.
    """

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only


def register() -> None:
    """Declare the profiles and load the default one; pytest's own option comes after and wins."""
    register_random(TORCH_RANDOM)
    # Drawing a model and capturing it takes seconds, which is neither a fault nor news.
    slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
    for name in ("default", "whole"):
        settings.register_profile(
            name,
            derandomize=True,
            deadline=None,
            suppress_health_check=slow_is_fine,
            # Explaining a failure runs it many more times; the thorough profile does.
            phases=[phase for phase in Phase if phase is not Phase.explain],
        )
    settings.register_profile(
        "thorough",
        max_examples=100 * SCALE["thorough"],
        derandomize=False,
        deadline=None,
        print_blob=True,
        suppress_health_check=slow_is_fine,
    )
    settings.load_profile("default")


def examples(count: int) -> Callable[[F], F]:
    """Draw `count` examples in the default profile, and its multiple in a heavier one."""
    return settings(max_examples=count * _scale())


def left_out(items: Collection[pytest.Item]) -> set[pytest.Item]:
    """What the default profile does not run of collected tests; else nothing."""
    if not _some():
        return set()
    tests = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        tests[_test(item)].append(item)
    return {item for cases in tests.values() for item in (beyond_few(cases) or uncrossed(cases))}


def beyond_few(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Of a test marked ``few(3)`` what is left when three are taken.

    Each that is taken has the most that none before it had; of equals it is the farthest from them.
    """
    mark = cases[0].get_closest_marker("few")
    if mark is None:
        return []
    lists = [set(_cases(item).items()) for item in cases]
    seen: set[tuple[str, tuple[int, ...]]] = set()
    taken: list[int] = []

    def gain(place: int) -> tuple[int, int, int]:
        away = min((abs(place - other) for other in taken), default=0)
        return len(lists[place] - seen), away, -place

    while len(taken) < min(mark.args[0], len(cases)):
        taken.append(max(set(range(len(cases))) - set(taken), key=gain))
        seen |= lists[taken[-1]]
    return [item for place, item in enumerate(cases) if place not in taken]


def uncrossed(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Of a test with several lists of cases every other one, as the black squares of a board.

    Of two lists each case is taken, with half of those of the other; of three each pair is.
    """
    lists: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    squares = [(item, _cases(item)) for item in cases]
    for _, along in squares:
        for names, case in along.items():
            if case not in lists[names]:
                lists[names].append(case)
    crossed = [names for names, every in lists.items() if len(every) > 1]
    if len(crossed) < 2:
        return []
    return [item for item, along in squares if sum(lists[n].index(along[n]) for n in crossed) % 2]


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _cases(item: pytest.Item) -> dict[str, tuple[int, ...]]:
    """By the names in each of its lists what it has of it, as what is the same object."""
    cases = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        each = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        params = item.callspec.params  # type: ignore[attr-defined]
        cases[",".join(each)] = tuple(id(params[name]) for name in each)
    return cases


def _some() -> bool:
    """Is it the profile that takes some of the cases?"""
    return settings.get_current_profile_name() == "default"


def _scale() -> int:
    return SCALE.get(settings.get_current_profile_name(), 1)
