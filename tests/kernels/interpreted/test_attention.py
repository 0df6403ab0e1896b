"""Attention with sizes by a kernel: the formula, for any shapes and layouts."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.interpreted.common import DEVICE, laid_out
from tests.profiles import examples
from tome_fx import kernels, ops

# The interpreter takes the bits of bfloat16 for numbers in products.
HALVES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]
# Weights are rounded, and the result.
CLOSE = {torch.float16: 2**-10, torch.bfloat16: 2**-6}
Drawn = tuple[Tensor, Tensor, Tensor, Tensor]


@st.composite
def attentions(draw: st.DrawFn) -> Drawn:
    """Queries, keys, values, in any layout, and sizes that all images share or not."""
    rng = random.Random(draw(st.integers(0, 2**20)))
    batch, key_heads, group = rng.randint(1, 2), rng.randint(1, 2), rng.choice([1, 1, 3])
    queries, keys = rng.choice([1, 7, 64, 70]), rng.choice([1, 5, 64, 65, 130, 515])
    width, value_width = rng.choice([3, 16, 40, 64, 80, 96]), rng.choice([5, 16, 64, 72, 192])
    shapes = [
        (batch, key_heads * group, queries, width),
        (batch, key_heads, keys, width),
        (batch, key_heads, keys, value_width),
    ]
    q, k, v = (laid_out(torch.randn(shape), rng).to(DEVICE) for shape in shapes)
    images = batch if rng.random() < 0.7 else 1
    size = torch.randint(1, 40, (images, keys)).float().to(DEVICE)
    return q, k, v, size[:, None, None]


def formula(q: Tensor, k: Tensor, v: Tensor, size: Tensor, scale: float) -> Tensor:
    q, k, v, size = (x.double() for x in (q, k, v, size))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return torch.softmax(scale * q @ k.transpose(-1, -2) + size.log(), dim=-1) @ v


@examples(10)
@given(attentions(), st.sampled_from(HALVES), st.sampled_from([None, 0.03, 1.0]))
def test_it_is_the_formula(drawn: Drawn, dtype: torch.dtype, scale: float | None) -> None:
    q, k, v = (x.to(dtype) for x in drawn[:3])
    how = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
    with torch.no_grad():
        found = ops.FORMS["kernel"](q, k, v, drawn[3], scale=scale, **how)
        again = ops.FORMS["kernel"](q, k, v, drawn[3], scale=scale, **how)
    expected = formula(q, k, v, drawn[3], scale or (q.shape[-1] ** -0.5 if scale is None else 0))
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    bound = CLOSE[dtype] * float(v.abs().max())
    assert float((found - expected).abs().max()) <= bound
    assert torch.equal(found, again)
    assert found.transpose(1, 2).is_contiguous()


def test_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["tome_fx.ops.attention"], "mask_attention")
    assert kernels.chosen(DEVICE)
    q = torch.randn(1, 2, 5, 8, device=DEVICE).half()
    ops.FORMS["kernel"](q, q, q, torch.ones(1, 1, 1, 5, device=DEVICE))


def test_a_key_of_three_tokens_is_three_keys() -> None:
    q, k, v = (torch.randn(1, 2, 6, 16, device=DEVICE).half() for _ in range(3))
    size = torch.tensor([1, 3, 1, 1, 1, 1], device=DEVICE).float()[None, None, None]
    index = torch.tensor([0, 1, 1, 1, 2, 3, 4, 5], device=DEVICE)
    found = ops.FORMS["kernel"](q, k, v, size)
    ones = torch.ones(1, 1, 1, 8, device=DEVICE)
    written_out = ops.FORMS["kernel"](q, k[:, :, index], v[:, :, index], ones)
    # Both are rounded once, from weights that were rounded: the same but for the last place or two.
    torch.testing.assert_close(found, written_out, rtol=2**-9, atol=2**-10)


@pytest.mark.parametrize(
    ("width", "value_width"),
    [(20, 64), (64, 40), (80, 80), (72, 96), (96, 96), (160, 96), (192, 192), (256, 256)],
)
def test_blocks_of_channels_filled_or_not(width: int, value_width: int) -> None:
    shapes = [(1, 2, 9, width), (1, 2, 600, width), (1, 2, 600, value_width)]
    q, k, v = (torch.randn(shape, device=DEVICE).half() for shape in shapes)
    size = torch.randint(1, 9, (1, 1, 1, 600), device=DEVICE).float()
    found = ops.FORMS["kernel"](q, k, v, size)
    torch.testing.assert_close(
        found.double(), formula(q, k, v, size, width**-0.5), rtol=0, atol=2**-9
    )


def test_keys_of_size_zero_count_nothing() -> None:
    q, k, v = (torch.randn(1, 1, 70, 8, device=DEVICE).half() for _ in range(3))
    size = torch.ones(1, 1, 1, 70, device=DEVICE)
    size[..., :66] = 0
    found = ops.FORMS["kernel"](q, k, v, size)
    torch.testing.assert_close(
        found,
        ops.FORMS["kernel"](q, k[:, :, 66:], v[:, :, 66:], size[..., 66:]),
        rtol=0,
        atol=2**-9,
    )


@torch.no_grad()
def test_sizes_whose_logarithm_is_there() -> None:
    q = torch.randn(2, 3, 40, 8, device=DEVICE).half()
    size = torch.randint(1, 9, (2, 1, 1, 40), device=DEVICE).float()
    level = size[:, 0, 0].log2()
    found = ops.level_attention(q, q, q, level, scale=0.3)
    assert torch.equal(found, ops.kernel_attention(q, q, q, size, scale=0.3))
    for wide in (q.float(), q.clone().requires_grad_()):
        with torch.set_grad_enabled(wide.requires_grad):
            found = ops.level_attention(wide, wide, wide, level)
            expected = ops.mask_attention(wide, wide, wide, size)
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-8)


def test_one_query_head_over_many_key_heads_is_left_to_torch() -> None:
    q, k = (
        torch.randn(1, 1, 5, 8, device=DEVICE).half(),
        torch.randn(1, 4, 6, 8, device=DEVICE).half(),
    )
    size = torch.ones(1, 1, 1, 6, device=DEVICE)
    assert torch.equal(ops.FORMS["kernel"](q, k, k, size), ops.FORMS["mask"](q, k, k, size))


def test_nan_stays_in_its_image() -> None:
    q = torch.randn(2, 1, 9, 8, device=DEVICE).half()
    k = q.clone()
    k[0, 0, 3] = float("nan")
    found = ops.FORMS["kernel"](q, k, q, torch.ones(2, 1, 1, 9, device=DEVICE))
    assert found[0].isnan().any()
    assert found[1].isfinite().all()


def test_what_it_does_not_do_is_done_with_a_mask() -> None:
    """Float32, wide heads, and whatever records gradients."""
    size = torch.full((1, 1, 1, 5), 2.0, device=DEVICE)
    for width, dtype, learns in (
        (8, torch.float32, False),
        (264, torch.float16, False),
        (8, torch.float16, True),
    ):
        q = torch.randn(1, 2, 5, width, device=DEVICE).to(dtype).requires_grad_(learns)
        found = ops.FORMS["kernel"](q, q, q, size)
        assert torch.equal(found, ops.FORMS["mask"](q, q, q, size))
        assert found.requires_grad == learns
    with torch.no_grad(), kernels.using("portable"):
        assert torch.equal(ops.FORMS["kernel"](q, q, q, size), ops.FORMS["mask"](q, q, q, size))


def test_the_op_is_what_it_says() -> None:
    x = torch.randn(2, 4, 5, 8, device=DEVICE).half()
    args = (x, x[:, :2], x[:, :2], torch.zeros(1, 5, device=DEVICE), 0.3)
    torch.library.opcheck(torch.ops.tome_fx.attend.default, args, test_utils=("test_schema",))
