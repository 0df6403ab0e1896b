"""How many examples hypothesis draws.

A test says what it needs by default, `@examples(200)`, and a heavier profile multiplies that:

    pytest                                    the default: the same examples on every run
    pytest --hypothesis-profile=thorough      50 times as many, at random

Of long lists of cases, `few(CASES, 8)`, it takes some by default, and all of them in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

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


def _scale() -> int:
    return SCALE.get(settings.get_current_profile_name(), 1)
