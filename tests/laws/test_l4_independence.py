"""L4: an image's result depends neither on the other images of its batch nor on their number."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import oracle
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


def decided(config: Subject, schedule: list[int]) -> bool:
    """False where similarities are so close that rounding may choose the pairs."""
    if not config.has_oracle:
        return True
    images = config.images(batch=4, seed=2)
    return oracle.trace(config.build(), images, schedule).margin > 1e-9


@examples(5)
@given(subjects_with_schedule(), st.permutations(range(4)), st.integers(0, 3))
def test_batch_mates_do_not_matter(
    drawn: tuple[Subject, list[int]], order: list[int], spoiled: int
) -> None:
    config, schedule = drawn
    assume(decided(config, schedule))
    model, x = config.build(), config.images(batch=4, seed=2)
    fast = transform(model, config.images(), schedule)
    assert_merged(fast, schedule, config)
    assert_differs(fast, model, x, config)
    together = run(fast, x)
    assert not torch.equal(together[0], together[1])

    assert distance(run(fast, x[order]), together[order]) < 1e-9
    for i in range(4):
        assert distance(run(fast, x[i : i + 1]), together[i : i + 1]) < 1e-9
    assert distance(run(fast, x[1:3]), together[1:3]) < 1e-9

    x[spoiled, :, -1, -1] = float("nan")
    others = [i for i in range(4) if i != spoiled]
    after = run(fast, x)
    assert distance(after[others], together[others]) < 1e-9
    assert bool(after[spoiled].isnan().any())


@examples(3)
@given(subjects_with_schedule(max_depth=2), st.integers(1, 3))
def test_the_example_does_not_matter(drawn: tuple[Subject, list[int]], example_batch: int) -> None:
    """Neither the batch nor the pictures of the capture leave a trace in the program."""
    config, schedule = drawn
    model, x = config.build(), config.images(batch=3)
    first = transform(model, config.images(batch=example_batch, seed=5), schedule)
    second = transform(model, torch.zeros_like(x), schedule)
    assert torch.equal(run(first, x), run(second, x))
    assert_differs(first, model, x, config)
