"""Merging by a kernel, alone and with the norm behind it."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.interpreted.common import DEVICE, DTYPES, laid_out, merges
from tests.ops import loops
from tests.profiles import examples
from tome_fx import kernels, ops

Drawn = tuple[Tensor, Tensor | None, ops.MergePlan, int, int]
# The interpreter cuts bfloat16 off where devices round it.
CLOSE = {
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7 if DEVICE == "cpu" else 2**-8,
    torch.float16: 2**-11,
}


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within half a unit in the last place, and some for the sums."""
    bound = 1.01 * CLOSE[dtype]
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=bound, atol=1e-6)


def exactly(x: Tensor, plan: ops.MergePlan, size: Tensor | None, front: int, back: int) -> Tensor:
    """What merging makes of the numbers of ``x``, in float64."""
    there = ops.MergePlan(*(t.cpu() for t in plan))
    return loops.looped_merge(x.cpu(), there, None if size is None else size.cpu(), front, back)


@examples(10)
@given(merges(), st.sampled_from(DTYPES))
def test_merge_is_the_mean_weighted_by_size(drawn: Drawn, dtype: torch.dtype) -> None:
    x, size, plan, front, back = drawn
    x, sizes = x.to(dtype), ops.merged_size(plan, size, x)
    merged = ops.merge(x, plan, size, sizes, 1, front, back)
    assert merged.dtype == dtype
    close(merged, exactly(x, plan, size, front, back), dtype)
    assert torch.equal(merged, ops.merge(x, plan, size, sizes, 1, front, back))


@examples(10)
@given(merges(4), st.sampled_from(DTYPES))
def test_several_merges_are_one(drawn: Drawn, dtype: torch.dtype) -> None:
    """Of which more tokens may go than stay, and many join one."""
    x, size, plan, front, back = drawn
    left = plan.keep.shape[1]
    second = ops.match(torch.rand(len(x), (left + 1) // 2, left // 2, device=DEVICE), left // 2)
    plan = ops.compose_plans(second, plan, ops.assignment(second))
    x, sizes = x.to(dtype), ops.merged_size(plan, size, x)
    close(
        ops.merge(x, plan, size, sizes, 1, front, back),
        exactly(x, plan, size, front, back),
        dtype,
    )


def norms(drawn: Drawn, dtype: torch.dtype, weight: bool, bias: bool) -> tuple[object, ...]:
    x, size, plan, front, back = drawn
    x = x.to(dtype)
    width = x.shape[2]
    scale = [
        torch.randn(width, device=DEVICE, dtype=dtype) if on else None for on in (weight, bias)
    ]
    return x, plan, size, x, [width], *scale, 1e-6, front, back


@examples(10)
@given(merges(), st.booleans(), st.booleans(), st.sampled_from(DTYPES))
def test_the_norm_is_that_of_what_was_merged(
    drawn: Drawn, weight: bool, bias: bool, dtype: torch.dtype
) -> None:
    args = norms(drawn, dtype, weight, bias)
    merged, normed, size, level = ops.merge_norm(*args)
    with kernels.using("portable"):
        expected = ops.merge_norm(*args)
    assert torch.equal(size, expected[2])
    torch.testing.assert_close(level, expected[3], rtol=1e-6, atol=1e-6)
    assert level.isfinite().all()
    assert merged.dtype == normed.dtype == dtype
    close(merged, exactly(*args[:3], *args[8:]), dtype)
    wide = [None if t is None else t.double() for t in args[5:7]]
    exact = torch.layer_norm(merged.double(), args[4], *wide, eps=args[7])
    bound = 1e-5 if dtype == torch.float32 else 1.01 * CLOSE[dtype]
    torch.testing.assert_close(normed.double(), exact, rtol=bound, atol=1e-4)
    again = ops.merge_norm(*args)
    assert all(torch.equal(a, b) for a, b in zip(again, (merged, normed, size, level), strict=True))


@examples(8)
@given(merges(), st.sampled_from([d for d in DTYPES if DEVICE != "cpu" or d != torch.bfloat16]))
def test_a_branch_is_added_first_as_the_model_rounds_it(drawn: Drawn, dtype: torch.dtype) -> None:
    x, *rest = norms(drawn, dtype, True, True)
    branch = laid_out(torch.randn(x.shape), random.Random(x.shape[2])).to(x)
    found = ops.merge_norm(x, *rest, branch=branch)
    expected = ops.merge_norm(x + branch, *rest)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_branch_of_another_precision_is_added_as_torch_does() -> None:
    """Autocast makes one half, whichever summand comes first."""
    plan = ops.match(torch.randn(2, 3, 3, device=DEVICE), 2)
    wide, half = (
        torch.randn(2, 6, 8, device=DEVICE) * 1e5,
        torch.randn(2, 6, 8, device=DEVICE).half(),
    )
    for x, branch in ((wide, half), (half, wide)):
        found = ops.merge_norm(x, plan, None, wide, [8], branch=branch)
        expected = ops.merge_norm(x + branch, plan, None, wide, [8])
        assert found[0].dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def gradients(args: tuple[object, ...], seed: int) -> list[Tensor]:
    """First gradients, and the gradient of one of them."""
    given = (args[0], args[0].cos(), *args[5:7])
    leaves = [t.detach().clone().requires_grad_() for t in given if t is not None]
    x, branch, *scale = leaves
    scale = [scale.pop(0) if t is not None else None for t in args[5:7]]
    merged, normed, size, level = ops.merge_norm(x, *args[1:5], *scale, *args[7:], branch=branch)
    assert not size.requires_grad
    assert not level.requires_grad
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(merged.shape, generator=generator).to(merged) for _ in range(2)]
    total = (merged.square() * weights[0] + normed.square() * weights[1]).sum()
    first = torch.autograd.grad(total, leaves, create_graph=True)
    return [*first, *torch.autograd.grad(first[0].square().sum(), x)]


@examples(8)
@given(merges(), st.booleans(), st.booleans())
def test_gradients_are_the_portable_ones(drawn: Drawn, weight: bool, bias: bool) -> None:
    if drawn[0].shape[2] < 3:
        return  # the norm of one or two channels is a step, whose gradients are all rounding
    args = norms(drawn, torch.float32, weight, bias)
    found = gradients(args, 1)
    with kernels.using("portable"):
        expected = gradients(args, 1)
    assert all(t.abs().sum() > 0 for t in expected)
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * scale)


@examples(8)
@given(merges())
def test_gradients_of_merge_alone(drawn: Drawn) -> None:
    x, size, plan, front, back = drawn
    sizes = ops.merged_size(plan, size, x)
    found = []
    for mode in ("triton", "portable"):
        leaf = x.detach().clone().requires_grad_()
        with kernels.using(mode):
            merged = ops.merge(leaf, plan, size, sizes, 1, front, back)
        found.append(torch.autograd.grad((merged**3).sum(), leaf)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_under_autocast_the_norm_has_the_portable_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 8, device=DEVICE, dtype=dtype)
    plan = ops.match(torch.randn(2, 3, 3, device=DEVICE), 2, 1)
    scale = torch.randn(8, device=DEVICE)
    args = (x, plan, None, x, [8], scale, scale, 1e-6, 1, 0)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = ops.merge_norm(*args)
        with kernels.using("portable"):
            expected = ops.merge_norm(*args)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    exact = torch.layer_norm(found[0].float(), [8], scale, scale, 1e-6)
    torch.testing.assert_close(found[1].float(), exact, rtol=1.01 * CLOSE[dtype], atol=1e-5)


def test_nan_stays_in_its_image_and_protected_rows_are_copied() -> None:
    x = torch.randn(2, 9, 6, device=DEVICE)
    x[0, 3] = float("nan")
    plan = ops.match(torch.randn(2, 3, 3, device=DEVICE), 2)
    merged, normed, *_ = ops.merge_norm(x, plan, None, x, [6], None, None, 1e-6, 2, 1)
    assert merged[1].isfinite().all()
    assert normed[1].isfinite().all()
    assert torch.equal(merged[:, [0, 1, -1]], x[:, [0, 1, -1]])


def test_large_half_floats_stay_in_range() -> None:
    x = torch.full((1, 6, 3), 60000.0, dtype=torch.float16, device=DEVICE)
    plan, size = ops.match(torch.zeros(1, 3, 3, device=DEVICE), 3), torch.full((1, 6), 9.0)
    merged = ops.merge(x, plan, size.to(DEVICE), ops.merged_size(plan, size.to(DEVICE), x))
    torch.testing.assert_close(merged, x[:, :3])


# functorch's own, on its first forward-mode gradient
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_what_kernels_do_not_do_is_portable() -> None:
    plan = ops.match(torch.randn(2, 3, 3, device=DEVICE), 2)
    for x in (torch.randn(2, 6, 4, 3, device=DEVICE), torch.randn(2, 6, 4).double().to(DEVICE)):
        sizes = ops.merged_size(plan, None, x)
        with kernels.using("portable"):
            expected = ops.merge(x, plan, None, sizes)
        assert torch.equal(ops.merge(x, plan, None, sizes), expected)
    x = torch.randn(2, 6, 4, device=DEVICE)
    rows = torch.func.vmap(lambda one: ops.merge(one, plan, None, sizes.float()))(x[None])
    torch.testing.assert_close(rows[0], ops.merge(x, plan, None, sizes.float()))
    tangent = torch.func.jvp(lambda v: ops.merge(v, plan, None, sizes.float()), (x,), (x,))[1]
    torch.testing.assert_close(tangent, ops.merge(x, plan, None, sizes.float()))


def test_the_ops_are_what_they_say() -> None:
    checks = ("test_schema", "test_autograd_registration")
    x = torch.randn(2, 9, 6, device=DEVICE, requires_grad=True)
    size, scale = torch.ones(2, 6, device=DEVICE), torch.randn(6, device=DEVICE)
    plan = ops.match(torch.randn(2, 3, 3, device=DEVICE), 2)
    merge, norm = torch.ops.tome_fx.merge.default, torch.ops.tome_fx.merge_norm.default
    torch.library.opcheck(merge, (x, *plan, size, 2, 1), test_utils=checks)
    args = (x, *plan, None, scale, None, 1e-6, 2, 1, False, x.detach() * 2)
    torch.library.opcheck(norm, args, test_utils=checks)
