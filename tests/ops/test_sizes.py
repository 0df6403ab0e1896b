"""Group sizes, and what weighs by them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import loops
from tests.profiles import examples
from tome_fx import ops
from tome_fx.errors import ShapeError
from tome_fx.ops import MergePlan

HALVES = [torch.float16, torch.bfloat16]


@examples(80)
@given(loops.tokens())
def test_sizes_add_up(drawn: tuple[Tensor, Tensor | None, MergePlan, int, int]) -> None:
    x, size, plan, _, _ = drawn
    found = ops.merged_size(plan, size, x)
    assert torch.equal(found, loops.looped_size(plan, size))
    before = plan.keep.shape[1] + plan.src.shape[1] if size is None else size.sum(1)
    assert torch.equal(found.sum(1), torch.as_tensor(before, dtype=found.dtype).expand(len(found)))


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sizes_are_whole_in_any_dtype(dtype: torch.dtype, kept: torch.dtype) -> None:
    """Above 256 bfloat16 has no odd numbers, above 2048 float16."""
    like = torch.zeros(1, 2, 4, 8, dtype=dtype)
    plan = ops.match(torch.zeros(1, 1, 1), 1)
    size = ops.merged_size(plan, None, like)
    assert size.dtype == kept
    for start in (256, 2048, 4096):
        pair = torch.tensor([[float(start), 1.0]], dtype=kept)
        found = ops.merged_size(plan, pair, like)
        assert (found.dtype, found.tolist()) == (kept, [[start + 1]])


@examples(80)
@given(st.integers(0, 2**20), st.integers(2, 5), st.integers(1, 3), st.integers(1, 2))
def test_sizes_along_an_axis(seed: int, rank: int, inner: int, outer: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, dim = torch.randperm(rank, generator=generator)[:2].tolist()
    front, back = torch.randint(0, 3, (2,), generator=generator).tolist()
    size = torch.randint(1, 9, (2, 3), generator=generator).float()
    found = ops.along([front, size, size, back], rank, batch, dim, outer, inner)
    places = outer * 2 * inner
    shape = [1] * rank
    shape[batch], shape[dim] = places, front + 6 + back
    assert list(found.shape) == shape
    plain = found.movedim((batch, dim), (0, 1)).reshape(places, -1)
    for position in range(places):
        own = size[position // inner % 2].tolist()
        row = [1.0] * front + own + own + [1.0] * back
        assert plain[position].tolist() == row


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_log_size_in_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits, size = torch.randn(2, 3, 4, 4).to(dtype), torch.randint(1, 200, (2, 1, 1, 4)).float()
    found = ops.add_log_size(logits, size)
    assert found.dtype == dtype
    expected = logits.double() + size.double().log()
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=3e-2)
    weight = ops.add_log_size(torch.zeros(1, 4, dtype=torch.float64), size[0, 0]).softmax(-1)
    torch.testing.assert_close(weight[0], (size[0, 0, 0] / size[0, 0, 0].sum()).double())


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_the_bias_of_keys_with_each_mask(dtype: torch.dtype) -> None:
    query, size = torch.randn(2, 3, 4, 8).to(dtype), torch.randint(1, 9, (2, 1, 1, 4)).float()
    log = size.log().to(dtype)
    assert torch.equal(ops.key_bias(query, size), log)
    added = torch.randn(3, 4, 4).to(dtype)
    found = ops.key_bias(query, size, added)
    assert (found.dtype, tuple(found.shape)) == (dtype, (2, 3, 4, 4))
    for b in range(2):
        for key in range(4):
            assert torch.equal(found[b, :, :, key], added[:, :, key] + log[b, 0, 0, key])
    shown = torch.rand(4, 4) < 0.5
    hidden = ops.key_bias(query, size, shown)
    assert hidden.dtype == dtype
    for q in range(4):
        for key in range(4):
            expected = float(log[0, 0, 0, key]) if shown[q, key] else -math.inf
            assert float(hidden[0, 0, q, key]) == expected


def test_a_bias_weighs_the_keys_of_fused_attention_by_size() -> None:
    """Attention over merged keys is attention over every member."""
    q, k, v = (torch.randn(1, 2, 4, 8, dtype=torch.float64) for _ in range(3))
    size = torch.tensor([[1.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    counts = size[0].long()
    attend = torch.nn.functional.scaled_dot_product_attention
    bias = ops.key_bias(q, ops.along([size], 4, 0, 3))
    expected = attend(q, k.repeat_interleave(counts, 2), v.repeat_interleave(counts, 2))
    torch.testing.assert_close(attend(q, k, v, bias), expected)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_totals_and_members(dtype: torch.dtype) -> None:
    x, size = torch.rand(2, 4, 4).to(dtype), torch.randint(1, 9, (2, 1, 4)).float()
    total = ops.scale_by_size(x, size)
    back = ops.divide_by_size(total, size)
    assert total.dtype == back.dtype == dtype
    torch.testing.assert_close(total.double(), x.double() * size, rtol=5e-3, atol=1e-6)
    torch.testing.assert_close(back.double(), x.double(), rtol=1e-2, atol=1e-6)


@examples(60)
@given(st.integers(0, 2**20), st.booleans(), st.booleans())
def test_a_weighted_mean_is_the_mean_of_all_members(seed: int, keepdim: bool, front: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 9, (2, 5), generator=generator).double()
    size = size if front else torch.ones_like(size)
    found = ops.weighted_sum(x, size[..., None], [1], keepdim, 7)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for token in range(5):
            expected[b] += size[b, token] * x[b, token] / 7
    torch.testing.assert_close(found, expected[:, None] if keepdim else expected)
    if not front:
        torch.testing.assert_close(ops.weighted_sum(x, None, [1], keepdim, 7), found)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_mean_of_large_half_floats_is_finite(dtype: torch.dtype) -> None:
    x = torch.full((1, 5, 3), 60000.0, dtype=dtype)
    size = torch.full((1, 5, 1), 40.0)
    found = ops.weighted_sum(x, size, [1], False, 200)
    assert found.dtype == dtype
    torch.testing.assert_close(found, x[:, 0], rtol=1e-3, atol=0.0)


def test_a_mean_may_ask_for_another_dtype() -> None:
    x = torch.randn(1, 5, 3, dtype=torch.float16)
    found = ops.weighted_sum(x, torch.full((1, 5, 1), 2.0), [1], True, 10, torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, x.double().mean(1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_a_mean_over_several_axes() -> None:
    x, size = torch.randn(2, 4, 3, 5), torch.randint(1, 9, (2, 1, 3, 1)).float()
    found = ops.weighted_sum(x, size, [1, 2], False, 12)
    expected = sum(x[:, i, j] * size[:, 0, j] / 12 for i in range(4) for j in range(3))
    torch.testing.assert_close(found, expected)


def test_an_input_of_another_size_is_refused() -> None:
    x = torch.zeros(2, 3, 8, 6)
    assert ops.check_input(x, (3, 8, 6), "x", 13) is x
    with pytest.raises(ShapeError, match="13 tokens") as caught:
        ops.check_input(x, (3, 6, 8), "x", 13)
    assert "(2, 3, 8, 6)" in str(caught.value)
    assert "example_inputs" in str(caught.value)
