"""L6: same input, same result, to the bit; ties go to the lowest index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import paper
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    run,
    subjects_with_schedule,
    transform,
)
from tests.profiles import examples
from tome_fx import ops

pytestmark = TINY


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@examples(4)
@given(subjects_with_schedule(), st.sampled_from([torch.float64, torch.float32]))
def test_same_input_same_bits(drawn: tuple[Subject, list[int]], dtype: torch.dtype) -> None:
    config, schedule = drawn
    model, x = config.build(dtype), config.images(dtype, batch=3)
    fast = transform(model, x, schedule)
    assert_merged(fast, schedule, config)
    assert_differs(fast, model, x, config)
    first = run(fast, x)
    run(fast, config.images(dtype, seed=9))  # no state stays behind
    assert torch.equal(run(fast, x), first)
    with deterministic():
        assert torch.equal(run(fast, x), first)
        again = transform(model, x, schedule)
        assert torch.equal(run(again, x), first)
    assert torch.equal(again.token_map(x), fast.token_map(x))

    flat = torch.full_like(x, 0.5)  # everything is a tie
    assert torch.equal(run(fast, flat), run(fast, flat))
    for layer, slots in enumerate(fast.token_map(flat)):
        left = slots.shape[1] - sum(fast.schedule[: layer + 1])
        for image in slots:
            assert image.unique().tolist() == list(range(left))


@st.composite
def tied_scores(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """Small whole numbers as similarities, a parity, and a valid r."""
    n, parity = draw(st.integers(2, 11)), draw(st.integers(0, 1))
    a, b = len(range(parity, n, 2)), len(range(1 - parity, n, 2))
    values = st.lists(st.integers(-1, 1), min_size=a * b, max_size=a * b)
    rows = [draw(values) for _ in range(2)]
    scores = torch.tensor(rows, dtype=torch.float64).reshape(2, a, b)
    return scores, parity, draw(st.integers(0, n // 2))


@examples(300)
@given(tied_scores())
def test_ties_go_to_the_lowest_index(drawn: tuple[torch.Tensor, int, int]) -> None:
    scores, parity, r = drawn
    n = scores.shape[1] + scores.shape[2]
    plan = ops.match(scores, r, parity)
    group_a, group_b = list(range(parity, n, 2)), list(range(1 - parity, n, 2))
    for image, (keep, src, dst) in zip(scores, zip(*plan, strict=True), strict=True):
        whole = torch.zeros(n + parity, n + parity, dtype=torch.float64)
        for i, a in enumerate(group_a):
            for j, b in enumerate(group_b):
                whole[a + parity, b + parity] = image[i, j]
        pairs, _ = paper.match(whole, r, protected=parity)
        found = {(int(s), int(keep[d])) for s, d in zip(src, dst, strict=True)}
        assert found == {(a - parity, b - parity) for a, b in pairs}
        survivors = [a for a in group_a if a not in {int(s) for s in src}]
        assert keep.tolist() == survivors + group_b


@pytest.mark.parametrize("r", [1, 2, 4])
def test_equal_scores_take_the_first(r: int) -> None:
    plan = ops.match(torch.ones(1, 4, 4), r)
    assert plan.src.tolist() == [[0, 2, 4, 6][:r]]
    assert plan.dst.tolist() == [[4 - r] * r]
    assert plan.keep.tolist() == [[*[0, 2, 4, 6][r:], 1, 3, 5, 7]]
