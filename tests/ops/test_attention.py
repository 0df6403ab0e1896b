"""The forms of attention with sizes are equal, and equal to attention over every member."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from tests.profiles import examples
from tome_fx import ops
from tome_fx.ops.attention import weighed_scores

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def drawn(
    seed: int, queries: int, keys: int, width: int, wide: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(2, 3, rows, columns, generator=generator, dtype=torch.float64).to(dtype)
        for rows, columns in ((queries, width), (keys, width), (keys, wide))
    ]
    size = torch.randint(1, 300, (2, 1, 1, keys), generator=generator)
    return *made, size.to(torch.promote_types(dtype, torch.float32))


def reference(q: Tensor, k: Tensor, v: Tensor, size: Tensor, scale: float | None) -> Tensor:
    """Attention over every member, one image at a time, in float64."""
    rows = []
    for image in range(q.shape[0]):
        counts = size[image, 0, 0].long()
        members = [x[image].double().repeat_interleave(counts, 1) for x in (k, v)]
        rows.append(fused(q[image].double(), *members, scale=scale))
    return torch.stack(rows)


@examples(60)
@given(
    st.integers(0, 2**20), st.integers(1, 6), st.integers(1, 9), st.sampled_from([4, 7, 16]),
    st.sampled_from([4, 5]), st.sampled_from([None, 1.0, 0.3]), st.sampled_from(list(BOUNDS)),
    st.sampled_from(list(ops.FORMS)),
)  # fmt: skip
def test_each_form_is_attention_over_members(
    seed: int, queries: int, keys: int, width: int, wide: int, scale: float | None,
    dtype: torch.dtype, form: str,
) -> None:  # fmt: skip
    q, k, v, size = drawn(seed, queries, keys, width, wide if width != 16 else 16, dtype)
    expected = reference(q, k, v, size, scale)
    found = ops.FORMS[form](q, k, v, size, scale=scale)
    assert found.dtype == dtype
    bound = BOUNDS[dtype] * (1 + float(expected.abs().max()))
    assert float((found.double() - expected).abs().max()) <= bound


def test_a_second_channel_holds_what_rounding_leaves() -> None:
    """One channel of bfloat16 would be off by up to a part in 512 of a logit of about 45."""
    q, k, v, size = drawn(0, 6, 40, 64, 8, torch.bfloat16)
    exact = ops.mask_attention(*(x.double() for x in (q, k, v, size)))
    error = float((ops.channel_attention(q, k, v, size).double() - exact).abs().mean())
    plain = ops.plain_attention(q.float(), k.float(), v.float(), size).to(torch.bfloat16)
    rounded = float((plain.double() - exact).abs().mean())
    assert error < 4 * rounded


@pytest.mark.parametrize("form", ["mask", "channel", "values"])
def test_queries_that_share_keys(form: str) -> None:
    q = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 2, 6, 8, dtype=torch.float64) for _ in range(2))
    size = torch.randint(1, 9, (2, 1, 1, 6)).double()
    whole = [x.repeat_interleave(2, 1) for x in (k, v)]
    found = ops.FORMS[form](q, k, v, size, enable_gqa=True)
    torch.testing.assert_close(found, ops.mask_attention(q, *whole, size))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_scores_that_flex_attention_weighs() -> None:
    q, k, v, size = drawn(3, 5, 7, 16, 16, torch.float32)
    expected = ops.mask_attention(q, k, v, size, scale=0.3)
    torch.testing.assert_close(weighed_scores(q, k, v, size, 0.3), expected)


@pytest.mark.parametrize("form", ops.FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(form: str, dtype: torch.dtype) -> None:
    """Columns are rounded in the dtype of the kernel, not before."""
    q, k, v, size = drawn(1, 5, 9, 16, 16, torch.float32)
    with torch.autocast("cpu", dtype):
        found = ops.FORMS[form](q, k, v, size)
    assert found.dtype == dtype
    expected = reference(q, k, v, size, None)
    assert float((found.double() - expected).abs().max()) <= BOUNDS[dtype] * 4


@pytest.mark.parametrize("form", ops.FORMS)
def test_gradients(form: str) -> None:
    q, k, v, size = drawn(2, 4, 6, 8, 8, torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(ops.mask_attention(*inputs, size).square().sum(), inputs)
    found = torch.autograd.grad(ops.FORMS[form](*inputs, size).square().sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", ["channel", "values"])
def test_an_image_that_is_not_a_number_spoils_only_itself(form: str) -> None:
    q, k, v, size = drawn(4, 5, 6, 8, 8, torch.float32)
    clean = ops.FORMS[form](q, k, v, size)
    k[0] = float("nan")
    spoilt = ops.FORMS[form](q, k, v, size)
    assert not torch.equal(spoilt[0], clean[0])
    assert torch.equal(spoilt[1], clean[1])
