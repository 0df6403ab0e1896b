"""Bipartite soft matching: a valid plan for any scores, and ties at the lowest index."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import loops
from tests.profiles import examples
from tome_fx import ops
from tome_fx.ops import matching

parities = pytest.mark.parametrize("parity", [0, 1])


@st.composite
def matchings(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Scores ``[B, |A|, |B|]`` full of ties or of none, ``r`` from 0 to ``|A|``, a parity."""
    n, parity = draw(st.integers(2, 12)), draw(st.integers(0, 1))
    a = len(range(parity, n, 2))
    shape = (draw(st.integers(1, 3)), a, n - a)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    if draw(st.booleans()):
        scores = torch.randint(-2, 2, shape, generator=generator).double() / 2
    else:
        scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores, draw(st.integers(0, a)), parity


def valid(plan: ops.MergePlan, n: int, r: int, parity: int) -> None:
    """The plan is a permutation of the tokens, and merges A tokens into B slots."""
    batch = plan.keep.shape[0]
    order = torch.cat([plan.keep, plan.src], dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(n).expand(batch, n))
    assert plan.src.shape == plan.dst.shape == (batch, r)
    assert (plan.src % 2 == parity).all()
    survivors = len(range(parity, n, 2)) - r
    assert (plan.dst >= survivors).all()
    assert (plan.dst < n - r).all()
    assert {t.dtype for t in plan} == {torch.int64}


@examples(150)
@given(matchings())
def test_as_a_loop_does_it(drawn: tuple[Tensor, int, int]) -> None:
    scores, r, parity = drawn
    plan = ops.match(scores, r, parity)
    valid(plan, scores.shape[1] + scores.shape[2], r, parity)
    for image in range(scores.shape[0]):
        keep, src, dst = loops.looped_match(scores[image], r, parity)
        assert plan.keep[image].tolist() == keep
        assert plan.src[image].tolist() == src
        assert plan.dst[image].tolist() == dst


@examples(50)
@given(matchings())
def test_an_image_is_matched_alone(drawn: tuple[Tensor, int, int]) -> None:
    scores, r, parity = drawn
    whole = ops.match(scores, r, parity)
    for image in range(scores.shape[0]):
        alone = ops.match(scores[image : image + 1], r, parity)
        assert all(torch.equal(a[0], w[image]) for a, w in zip(alone, whole, strict=True))


@parities
def test_survivors_of_a_in_order_then_b(parity: int) -> None:
    n, r = 10, 3
    plan = ops.match(torch.randn(4, 5, 5), r, parity)
    for row in plan.keep.tolist():
        assert row[:2] == sorted(row[:2])
        assert {i % 2 for i in row[:2]} == {parity}
        assert row[2:] == list(range(1 - parity, n, 2))


@parities
def test_equal_scores_take_the_lowest_index(parity: int) -> None:
    plan = ops.match(torch.zeros(1, 4, 4), 2, parity)
    assert plan.src.tolist() == [[parity, 2 + parity]]
    assert plan.dst.tolist() == [[2, 2]]


@parities
def test_all_of_a_may_merge(parity: int) -> None:
    plan = ops.match(torch.randn(2, 4, 4), 4, parity)
    assert plan.keep.tolist() == [list(range(1 - parity, 8, 2))] * 2


@parities
def test_none_may_merge(parity: int) -> None:
    plan = ops.match(torch.randn(2, 4, 4), 0, parity)
    order = [*range(parity, 8, 2), *range(1 - parity, 8, 2)]
    assert plan.keep.tolist() == [order] * 2
    assert plan.src.shape == (2, 0)


def test_the_least_finite_scores_still_rank() -> None:
    scores = torch.tensor([[[-2.0, -2.0], [-float("inf"), -float("inf")], [-1.0, -2.0]]])
    plan = ops.match(scores, 2)
    assert plan.src.tolist() == [[0, 4]]
    valid(plan, 5, 2, 0)


@examples(80)
@given(st.integers(2, 11), st.integers(0, 1), st.integers(0, 2**20))
def test_similarity_is_the_cosine_of_a_to_b(n: int, parity: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    found = ops.similarity(metric, parity)
    first, second = list(range(parity, n, 2)), list(range(1 - parity, n, 2))
    assert found.shape == (2, len(first), len(second))
    for image in range(2):
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                u, v = metric[image, a].tolist(), metric[image, b].tolist()
                dot = sum(x * y for x, y in zip(u, v, strict=True))
                length = (sum(x * x for x in u) * sum(y * y for y in v)) ** 0.5
                assert abs(float(found[image, i, j]) - dot / length) < 1e-12


@parities
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), -float("inf")])
def test_bad_rows_get_a_valid_plan_and_leave_the_others_alone(parity: int, bad: float) -> None:
    metric = torch.randn(2, 9, 4)
    expected = ops.similarity(metric, parity)
    spoilt = metric.clone()
    spoilt[0, 3:5] = bad
    scores = ops.similarity(spoilt, parity)
    assert scores.isfinite().all()
    assert torch.equal(scores[1], expected[1])
    assert (scores >= -2).all()
    for r in range(scores.shape[1] + 1):
        valid(ops.match(scores, r, parity), 9, r, parity)


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_a_row_of_zeros_or_nan_is_similar_to_nothing(bad: float) -> None:
    metric = torch.randn(1, 6, 4)
    metric[0, 2] = bad
    assert (ops.similarity(metric)[0, 1] == 0).all()
    metric[:] = bad
    assert (ops.similarity(metric) == 0).all()


@pytest.mark.compiler
def test_compiled_bad_rows_are_told_from_others_too() -> None:
    metric = torch.randn(3, 9, 4)
    metric[0, 3, 1], metric[1, 4] = float("inf"), float("nan")
    scores = torch.compile(ops.similarity)(metric)
    torch.testing.assert_close(scores, ops.similarity(metric), rtol=0, atol=1e-6)
    assert (scores == -2).sum() == scores.shape[1], "the column of token 3, one of B"


def test_one_bad_number_is_not_nearer_than_any_vector() -> None:
    metric = torch.randn(1, 6, 4)
    metric[0, 0, 1] = float("inf")
    scores = ops.similarity(metric)
    assert (scores[0, 0] == -2).all()
    assert (scores[0, 1:] >= -1.001).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_metric_is_the_mean_over_heads_of_the_stream(dtype: torch.dtype) -> None:
    keys = torch.randn(2, 3, 9, 4).to(dtype).requires_grad_()
    metric = ops.head_mean(keys, 2, 1)
    assert metric.dtype == torch.promote_types(dtype, torch.float32)
    assert not metric.requires_grad
    expected = torch.zeros(2, 6, 4, dtype=torch.float64)
    for head in range(3):
        expected += keys[:, head, 2:8].detach().double() / 3
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(metric.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_metric_of_large_half_floats_is_finite() -> None:
    keys = torch.full((1, 8, 6, 64), 60000.0, dtype=torch.float16)
    scores = ops.similarity(ops.head_mean(keys))
    torch.testing.assert_close(scores, torch.ones(1, 3, 3))


@parities
def test_a_stream_of_one_token_has_nothing_to_merge(parity: int) -> None:
    scores = ops.similarity(torch.randn(2, 1, 3), parity)
    plan = ops.match(scores, 0, parity)
    assert plan.keep.tolist() == [[0], [0]]
    assert plan.src.shape == plan.dst.shape == (2, 0)


@examples(80)
@given(matchings())
def test_many_pairs_are_chosen_as_few_are(drawn: tuple[Tensor, int, int]) -> None:
    """The best of many pairs by the r-th best value: the same, ties included."""
    scores, r, parity = drawn
    expected = ops.match(scores, r, parity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_FEW", 0)
        found = ops.match(scores, r, parity)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("limit", [1, 7, 30, 10_000])
@pytest.mark.parametrize("n", [2, 3, 9, 14])
@pytest.mark.parametrize("parity", [0, 1])
def test_scores_a_few_rows_at_a_time(
    limit: int, n: int, parity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "SCORES", limit)
    metric = torch.randn(3, n, 5, dtype=torch.float64)
    metric[0, 1], metric[1, 0] = 0.0, float("nan")
    metric[2] = metric[2, :1]  # ties
    scores = ops.similarity(metric, parity)
    expected = ops.match(scores, 1, parity)
    found = ops.match_metric(metric, 1, parity)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
