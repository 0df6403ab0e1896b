"""How many examples hypothesis draws.

A test says what it needs by default, `@examples(200)`, and a heavier profile multiplies that:

    pytest                                    the default: the same examples on every run
    pytest --hypothesis-profile=thorough      50 times as many, at random

Of long lists of cases, `few(CASES, 8)`, the default takes some, and of tests with several lists of
cases every other one (`uncrossed`); the other profile takes all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, register_random, settings

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

SCALE = {"default": 1, "thorough": 50}


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
    settings.register_profile(
        "default",
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


def few(cases: Collection[T], count: int) -> list[T]:
    """Of many cases `count`, evenly from the first on; all of them in a heavier profile."""
    every = list(cases)
    if _scale() > 1 or len(every) <= count:
        return every
    return [every[k * len(every) // count] for k in range(count)]


def uncrossed(items: Collection[pytest.Item]) -> list[pytest.Item]:
    """What the default profile leaves out of tests with several lists of cases; else nothing.

    It is every other one, as the black squares of a board: of two lists each case is there, with
    half of those of the other; of three each pair is.
    """
    if _scale() > 1:
        return []
    lists: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
    squares = [(item, _cases(item)) for item in items]
    for item, cases in squares:
        for names, case in cases.items():
            if case not in lists[_test(item), names]:
                lists[_test(item), names].append(case)

    def place(item: pytest.Item, cases: dict[str, tuple[int, ...]]) -> int:
        along = [(lists[_test(item), names], case) for names, case in cases.items()]
        along = [(every, case) for every, case in along if len(every) > 1]
        return sum(every.index(case) for every, case in along) if len(along) > 1 else 0

    return [item for item, cases in squares if place(item, cases) % 2]


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


def _scale() -> int:
    return SCALE.get(settings.get_current_profile_name(), 1)
