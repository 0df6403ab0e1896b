"""Without scatter: the same plans, and the same values up to the order of additions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tome_fx
from tests.ops import loops
from tests.ops.test_merging import Drawn, close, weights
from tests.profiles import examples
from tests.rules.common import TINY
from tests.tiny import images, tiny
from tome_fx import ops

pytestmark = TINY


@examples(60)
@given(loops.tokens())
def test_values_merge_alike(drawn: Drawn) -> None:
    x, size, plan, front, back = drawn
    new = weights(size, plan)
    close(ops.merged_size(plan, size, x, True), ops.merged_size(plan, size, x))
    args = x, plan, size, new, 1, front, back
    close(ops.merge(*args, onehot=True), ops.merge(*args))
    totals = x, plan, 1, front, back
    close(ops.merge_sum(*totals, onehot=True), ops.merge_sum(*totals))
    assert torch.equal(ops.assignment(plan, True), ops.assignment(plan))


@examples(60)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_plans_are_the_same(a: int, b: int, r: int, seed: int) -> None:
    scores = torch.randn(2, a, b, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    r = min(r, a) if b else 0
    for ours, theirs in zip(ops.match(scores, r, 1, True), ops.match(scores, r, 1), strict=True):
        assert torch.equal(ours, theirs)


def test_a_mask_of_infinities_stays_one() -> None:
    plan = ops.match(torch.randn(2, 3, 3), 2)
    mask = torch.tensor([0.0, float("-inf")]).repeat(3).expand(2, 6).clone()
    size = ops.merged_size(plan, None, mask)
    args = mask, plan, None, size
    assert torch.equal(ops.merge(*args, onehot=True), ops.merge(*args))


def test_sizes_keep_their_bits_under_autocast() -> None:
    plan = ops.match(torch.randn(1, 2, 2), 1)
    size = torch.full((1, 4), 257.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.merged_size(plan, size, size, onehot=True)
    assert torch.equal(found, ops.merged_size(plan, size, size))


@torch.no_grad()
def test_a_graph_without_scatter() -> None:
    model, x = tiny().double(), images().double()
    usual = tome_fx.transform(model, 2, example_inputs=x)
    fast = tome_fx.transform(model, 2, example_inputs=x, scatter=False)
    torch.testing.assert_close(fast(x), usual(x), rtol=1e-12, atol=1e-12)
    assert "scatter" in kernels(usual, x)
    assert "scatter" not in kernels(fast, x)
    assert torch.equal(fast.token_map(x), usual.token_map(x))


def kernels(model: torch.nn.Module, x: Tensor) -> str:
    """All ops that the exported model runs."""
    program = torch.export.export(model, (x,)).run_decompositions()
    return " ".join(str(node.target) for node in program.graph.nodes)
