"""Merge and unmerge, against loops over the groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import loops
from tests.profiles import examples
from tome_fx import ops
from tome_fx.ops import MergePlan

Drawn = tuple[Tensor, Tensor | None, MergePlan, int, int]


@pytest.fixture(autouse=True, scope="module")
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def weights(size: Tensor | None, plan: MergePlan) -> Tensor:
    return loops.looped_size(plan, size)


@examples(100)
@given(loops.tokens())
def test_merge_is_the_mean_weighted_by_size(drawn: Drawn) -> None:
    x, size, plan, front, back = drawn
    new = weights(size, plan)
    merged = ops.merge(x, plan, size, new, 1, front, back)
    close(merged, loops.looped_merge(x, plan, size, front, back))
    assert merged.dtype == x.dtype


@examples(50)
@given(loops.tokens())
def test_merge_sum_is_the_sum(drawn: Drawn) -> None:
    x, _, plan, front, back = drawn
    expected = loops.looped_merge(x, plan, None, front, back, total=True)
    close(ops.merge_sum(x, plan, 1, front, back), expected)


@examples(50)
@given(loops.tokens(), st.sampled_from([-2, -1, 1, 2, 3]))
def test_tokens_may_lie_on_any_axis(drawn: Drawn, dim: int) -> None:
    x, size, plan, front, back = drawn
    x = torch.stack([x, -2 * x], dim=2)  # [B, N, 2, 3]
    new = weights(size, plan)
    moved = x.movedim(1, dim)
    expected = ops.merge(x, plan, size, new, 1, front, back)
    found = ops.merge(moved, plan, size, new, dim, front, back)
    assert torch.equal(found, expected.movedim(1, dim))
    taken = ops.take(moved, plan.keep, dim, front, back).movedim(dim, 1)
    assert torch.equal(taken, loops.looped_take(x, plan.keep, front, back))


@examples(50)
@given(loops.tokens())
def test_the_assignment_gives_each_token_its_group(drawn: Drawn) -> None:
    x, size, plan, front, back = drawn
    slots = ops.assignment(plan)
    for image, row in enumerate(loops.groups(plan)):
        for slot, members in enumerate(row):
            assert all(int(slots[image, token]) == slot for token in members)
    merged = ops.merge(x, plan, size, weights(size, plan), 1, front, back)
    spread = ops.unmerge(merged, slots, 1, front, back)
    assert torch.equal(spread, loops.looped_take(merged, slots, front, back))
    assert spread.shape == x.shape
    assert torch.equal(ops.kept(plan), plan.keep)


@examples(50)
@given(loops.tokens())
def test_what_is_spread_merges_to_itself(drawn: Drawn) -> None:
    x, size, plan, front, back = drawn
    new = weights(size, plan)
    slots = ops.assignment(plan)
    merged = ops.merge(x, plan, size, new, 1, front, back)
    again = ops.merge(ops.unmerge(merged, slots, 1, front, back), plan, size, new, 1, front, back)
    close(again, merged)


@examples(50)
@given(loops.plans(4), st.integers(0, 2**20))
def test_maps_compose(drawn: tuple[MergePlan, int], seed: int) -> None:
    first, n = drawn
    batch, left = first.keep.shape
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, (left + 1) // 2, left // 2, generator=generator)
    second = ops.match(scores, 1)
    early, late = ops.assignment(first), ops.assignment(second)
    found = ops.compose(late, early)
    for image in range(batch):
        for token in range(n):
            assert int(found[image, token]) == int(late[image, int(early[image, token])])
    assert torch.equal(ops.compose(early, ops.identity(early, n)), early)
    x = torch.randn(batch, left - 1, 2, dtype=torch.float64)
    assert torch.equal(ops.unmerge(x, found), ops.unmerge(ops.unmerge(x, late), early))


def followed(plan: MergePlan, seed: int) -> tuple[MergePlan, MergePlan]:
    """A merge behind another one, and both as one."""
    batch, left = plan.keep.shape
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, (left + 1) // 2, left // 2, generator=generator)
    second = ops.match(scores, 1 + seed % (left // 2))
    return second, ops.compose_plans(second, plan, ops.assignment(second))


@examples(50)
@given(loops.tokens(4), st.integers(0, 2**20))
def test_merges_compose(drawn: Drawn, seed: int) -> None:
    x, size, first, front, back = drawn
    second, both = followed(first, seed)
    assert torch.equal(
        ops.assignment(both), ops.compose(ops.assignment(second), ops.assignment(first))
    )
    between = weights(size, first)
    after = weights(between, second)
    close(weights(size, both), after)
    step = ops.merge(x, first, size, between, 1, front, back)
    expected = ops.merge(step, second, between, after, 1, front, back)
    close(ops.merge(x, both, size, after, 1, front, back), expected)
    close(ops.merge(x, both, size, after, 1, front, back, onehot=True), expected)
    sums = ops.merge_sum(ops.merge_sum(x, first, 1, front, back), second, 1, front, back)
    close(ops.merge_sum(x, both, 1, front, back), sums)
    index = torch.arange(x.shape[1]).expand(x.shape[:2])
    step = ops.merge(index, first, size, between, 1, front, back)
    expected = ops.merge(step, second, between, after, 1, front, back)
    assert torch.equal(ops.merge(index, both, size, after, 1, front, back), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
def test_indices_and_masks_take_the_representative(dtype: torch.dtype) -> None:
    plan = ops.match(torch.randn(3, 4, 4), 3)
    x = torch.randint(0, 2 if dtype == torch.bool else 50, (3, 10, 2)).to(dtype)
    found = ops.merge(x, plan, None, weights(None, plan), 1, 1, 1)
    assert found.dtype == dtype
    assert torch.equal(found, loops.looped_take(x, plan.keep, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_stays_and_the_sum_is_wide(dtype: torch.dtype) -> None:
    plan = ops.match(torch.randn(2, 8, 8), 7)
    x, size = torch.randn(2, 17, 5).to(dtype), torch.randint(1, 41, (2, 16)).float()
    found = ops.merge(x, plan, size, weights(size, plan).float(), 1, 1)
    assert found.dtype == dtype
    expected = loops.looped_merge(x, plan, size, 1, 0)
    # Half a unit in the last place of each dtype, and the float32 weights.
    bound = {torch.float16: 6e-4, torch.bfloat16: 5e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=1e-6)


@pytest.mark.parametrize("value", [60000.0, -60000.0, 6e-5])
def test_half_floats_neither_overflow_nor_vanish(value: float) -> None:
    plan = ops.match(torch.zeros(1, 8, 8), 8)  # all of A into one token
    x = torch.full((1, 16, 3), value, dtype=torch.float16)
    size = torch.full((1, 16), 40.0)
    found = ops.merge(x, plan, size, ops.merged_size(plan, size, x))
    assert found.isfinite().all()
    torch.testing.assert_close(found, x[:, :8], rtol=1e-3, atol=0.0)


def test_a_bad_token_stays_in_its_group() -> None:
    plan = ops.match(torch.randn(1, 4, 4), 2)
    x = torch.randn(1, 8, 2)
    x[0, int(plan.src[0, 0])] = float("nan")
    merged = ops.merge(x, plan, None, weights(None, plan).float())
    bad = merged.isnan().any(-1)[0]
    assert bad.nonzero().flatten().tolist() == [int(plan.dst[0, 0])]


@pytest.mark.parametrize("sized", [False, True])
def test_gradients_of_merge(sized: bool) -> None:
    plan = ops.match(torch.randn(2, 3, 3), 2)
    x = torch.randn(2, 8, 2, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 5, (2, 6)).double() if sized else None
    new = weights(size, plan)
    assert torch.autograd.gradcheck(lambda v: ops.merge(v, plan, size, new, 1, 1, 1), (x,))
    assert torch.autograd.gradgradcheck(lambda v: ops.merge(v, plan, size, new, 1, 1, 1), (x,))


def test_gradients_of_sums_and_rows() -> None:
    plan = ops.match(torch.randn(2, 3, 3), 2)
    slots = ops.assignment(plan)
    x = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.merge_sum(v, plan, 1, 1), (x,))
    assert torch.autograd.gradcheck(lambda v: ops.unmerge(v, slots, 1, 1), (y,))


def test_the_gradient_of_a_group_goes_to_its_members_by_size() -> None:
    plan = ops.match(torch.zeros(1, 2, 2), 2)  # tokens 0 and 2 into 1; 3 stays
    size = torch.tensor([[1.0, 2.0, 5.0, 4.0]])
    x = torch.zeros(1, 4, 1, requires_grad=True)
    ops.merge(x, plan, size, ops.merged_size(plan, size, x)).sum().backward()
    assert x.grad is not None
    close(x.grad.flatten(), torch.tensor([1 / 8, 2 / 8, 5 / 8, 1.0]), 1e-6)


@examples(40)
@given(loops.plans(), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_a_table_takes_rows_for_each_image(
    drawn: tuple[MergePlan, int], front: int, back: int, dim: int
) -> None:
    plan, n = drawn
    table = torch.randn(front + n + back, 2, 3)
    images = table.expand(plan.keep.shape[0], *table.shape)
    expected = loops.looped_take(images, plan.keep, front, back)
    found = ops.take_constant(table.movedim(0, dim), plan.keep, dim, front, back)
    assert torch.equal(found, expected.movedim(1, dim + 1))


@examples(40)
@given(loops.plans(), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_a_table_has_a_total_for_each_group(
    drawn: tuple[MergePlan, int], front: int, back: int, onehot: bool
) -> None:
    plan, n = drawn
    table = torch.randn(2, front + n + back, 3, dtype=torch.float64)
    slots, left = ops.assignment(plan), plan.keep.shape[1]
    images = ops.for_images(table, slots)
    expected = loops.looped_merge(images.movedim(2, 1), plan, None, front, back, total=True)
    found = ops.total(images, slots, left, 2, front, back, onehot)
    close(found, expected.movedim(1, 2))
    shown = ops.total(table[None] > 0, slots[:1], left, 2, front, back, onehot)
    assert shown.dtype == torch.int64
    assert int(shown.sum()) == int((table > 0).sum())


@examples(80)
@given(st.integers(0, 2**20), st.integers(2, 4), st.booleans())
def test_a_value_with_a_batch_of_its_own_is_placed(seed: int, rank: int, folded: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    number = lambda top: int(torch.randint(0, top + 1, (), generator=generator))  # noqa: E731
    batch, own = number(rank - 1), number(rank - 1) + 1
    heads = [2, 3][: number(2)] if folded else []
    shape = [2 + number(2) for _ in range(own)]
    if batch >= rank - own:
        shape[batch - (rank - own)] = 1
    x = torch.randn(3, *shape)
    width = 1
    for head in heads:
        width *= head
    rows = [v.reshape((1,) * (rank - own) + v.shape) for v in x for _ in range(width)]
    found = ops.place_batch(x, rank, batch, heads)
    assert torch.equal(found, torch.cat(rows, dim=batch))
