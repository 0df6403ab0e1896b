"""L0: at r=0 the result is bit for bit the model.

Only where eager mode itself takes another route than the captured program (the fast path of
``nn.MultiheadAttention`` and ``nn.TransformerEncoder``) is rounding allowed.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.architectures import Architecture, schedules
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    distance,
    run,
    subjects_with_schedule,
    transform,
)
from tests.profiles import examples

pytestmark = TINY


def assert_identical(fast: torch.nn.Module, model: torch.nn.Module, config: Subject) -> None:
    x = config.images(next(model.parameters()).dtype, seed=1)
    actual, expected = run(fast, x), run(model, x)
    if getattr(config, "kind", "own") == "own":
        assert torch.equal(actual, expected)
    else:
        limit = 1e-12 if x.dtype == torch.float64 else 1e-5
        assert distance(actual, expected) < limit


@examples(7)
@given(subjects_with_schedule(), st.sampled_from([torch.float64, torch.float32]))
def test_r_zero_is_the_model(drawn: tuple[Subject, list[int]], dtype: torch.dtype) -> None:
    config, schedule = drawn
    model, x = config.build(dtype), config.images(dtype)
    fast = transform(model, x, 0)
    assert tuple(fast.schedule) == (0,) * config.depth
    assert fast.report.macs_after == fast.report.macs_before
    assert_identical(fast, model, config)

    fast.r = schedule  # the identity is not that of a program which cannot merge
    assert fast.r == schedule
    assert_merged(fast, schedule, config)
    assert_differs(fast, model, x, config)

    fast.r = 0
    assert_identical(fast, model, config)


@examples(4)
@given(subjects_with_schedule(), st.data())
def test_replanning_equals_a_fresh_transform(
    drawn: tuple[Subject, list[int]], data: st.DataObject
) -> None:
    config, first = drawn
    second = data.draw(schedules(config.depth, config.stream))
    model, x = config.build(), config.images()
    fast = transform(model, x, first)
    fast.r = second
    fresh = transform(model, x, second)
    assert torch.equal(run(fast, x), run(fresh, x))
    assert fast.report.to_dict() == fresh.report.to_dict()


@pytest.mark.few(2)
@pytest.mark.parametrize("r", [0, [0, 0], 0.0, (0, 1.0)])
def test_every_spelling_of_nothing(r: object) -> None:
    config = Architecture()
    model, x = config.build(), config.images()
    assert torch.equal(run(transform(model, x, r), x), run(model, x))


@pytest.mark.parametrize("grid", [(1, 1), (1, 2)])
@pytest.mark.filterwarnings("ignore:Nothing merges:tome_fx.ToMeWarning")  # of the first of these
def test_too_few_tokens_to_merge(grid: tuple[int, int]) -> None:
    config = Architecture(grid=grid, registers=2)
    model, x = config.build(), config.images()
    fast = transform(model, x, 4)
    assert sum(fast.schedule) == config.stream // 2
    if config.stream == 1:
        assert torch.equal(run(fast, x), run(model, x))
