"""Matching by a kernel: the portable plan, wherever rounding does not decide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.interpreted.common import DEVICE, DTYPES, matchings
from tests.ops.test_matching import valid
from tests.profiles import examples
from tome_fx import kernels, ops

Drawn = tuple[Tensor, int, int, int, int]


def portable(keys: Tensor, r: int, parity: int, front: int, back: int) -> ops.MergePlan:
    with kernels.using("portable"):
        return ops.match_keys(keys, r, parity, front, back)


def same(found: ops.MergePlan, expected: ops.MergePlan) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def right(plan: ops.MergePlan, drawn: Drawn) -> None:
    """No pair that was left is better than one that was taken, by float64 up to rounding."""
    keys, r, parity, front, back = drawn
    n = keys.shape[2] - front - back
    valid(ops.MergePlan(*(t.cpu() for t in plan)), n, r, parity)
    scores = ops.similarity(ops.head_mean(keys.double(), front, back), parity)
    best = scores.amax(-1)
    rows = (plan.src - parity) // 2
    partners = plan.dst - (scores.shape[1] - r)
    taken = scores.gather(1, rows[..., None].expand(-1, -1, scores.shape[2]))
    taken = taken.gather(2, partners[..., None])[..., 0]
    assert (best.gather(1, rows) - taken < 1e-5).all()
    if 0 < r < scores.shape[1]:
        left = best.scatter(1, rows, float("-inf")).amax(1)
        assert (taken.amin(1) >= left - 1e-5).all()


def test_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.chosen(DEVICE)
    monkeypatch.delattr("tome_fx.ops.fused.match_metric")
    ops.match_keys(torch.randn(1, 1, 4, 2, device=DEVICE), 1)


@examples(10)
@given(matchings(), st.sampled_from(DTYPES))
def test_the_best_pairs_merge(drawn: Drawn, dtype: torch.dtype) -> None:
    keys = drawn[0].to(dtype)
    right(ops.match_keys(keys, *drawn[1:]), (keys, *drawn[1:]))


@examples(10)
@given(matchings())
def test_equal_to_the_portable_plan_where_scores_are_exact(drawn: Drawn) -> None:
    """Rows of one number have cosines of -1, 0 and 1: nearly all pairs are ties."""
    keys, *rest = drawn
    plain = torch.zeros_like(keys[:, :1])
    hot = torch.randint(0, min(3, keys.shape[3]), plain.shape[:3], device=DEVICE)[..., None]
    plain.scatter_(3, hot, torch.randint(-1, 3, hot.shape, device=DEVICE).to(keys.dtype))
    exact = plain.expand_as(keys)
    assert same(ops.match_keys(exact, *rest), portable(exact, *rest))


@pytest.mark.parametrize(
    ("n", "channels"), [(70, 40), (133, 16), (150, 65), (257, 80), (259, 8), (300, 96)]
)
def test_several_tiles(n: int, channels: int) -> None:
    keys = torch.randn(2, 3, n + 1, channels, device=DEVICE)
    drawn = (keys, 20, 1, 1, 0)
    right(ops.match_keys(*drawn), drawn)
    # All the same, to the last bit: the first partner is the only one in however many tiles.
    flat = torch.zeros_like(keys)
    flat[..., 0] = 1
    assert same(ops.match_keys(flat, 20, 1, 1, 0), portable(flat, 20, 1, 1, 0))
    # The best partner of the last row is in the last tile, and again in the first.
    keys[:, :, -3:] = keys[:, :, 1:4]
    right(ops.match_keys(*drawn), drawn)


@pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning")
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), -float("inf")])
def test_bad_rows_leave_the_other_images_alone(bad: float) -> None:
    keys = torch.randn(3, 2, 12, 5, device=DEVICE)
    expected = ops.match_keys(keys, 3)
    keys[1, :, 3:5] = bad
    found = ops.match_keys(keys, 3)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[::2], b[::2])
    assert same(found, portable(keys, 3, 0, 0, 0))
    keys[1, :, 6:, 2] = bad
    assert same(ops.match_keys(keys, 3), portable(keys, 3, 0, 0, 0))
    keys[1] = bad
    assert same(ops.match_keys(keys, 3), portable(keys, 3, 0, 0, 0))


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("channels", [24, 64, 200])
def test_scores_have_the_bits_of_float32(n: int, channels: int) -> None:
    """What one half cannot tell apart: partners, and pairs, that differ in the seventh digit."""
    keys = torch.randn(4, 1, n, channels, device=DEVICE)
    a = keys[:, 0, ::2]
    aside = torch.randn(a.shape, device=DEVICE)
    aside -= a * (a * aside).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True)
    aside *= a.norm(dim=-1, keepdim=True) / aside.norm(dim=-1, keepdim=True)
    keys[:, 0, 1::2] = a + 2e-3 * aside  # each has a partner of its own, at 1 - 2e-6
    keys[:, 0, 7] = a[:, 3] + 1.2e-3 * aside[:, 3]  # and the fourth one at 1 - 7e-7
    found = ops.match_keys(keys, 1)
    assert (found.src == 6).all()
    assert (found.dst == n // 2 - 1 + 3).all()
    # The first token has a second partner, and it is the better one.
    keys[:, 0, 5] = a[:, 0]
    found = ops.match_keys(keys, 1)
    assert (found.src == 0).all()
    assert (found.dst == n // 2 - 1 + 2).all()


@pytest.mark.filterwarnings("ignore:(invalid|overflow).*:RuntimeWarning")
def test_nan_is_less_than_any_cosine() -> None:
    keys = -torch.ones(1, 1, 12, 4, device=DEVICE)
    keys[..., 1::2, :] = 1
    keys[..., 2, 0] = float("inf")
    found = ops.match_keys(keys, 3)
    assert same(found, portable(keys, 3, 0, 0, 0))
    assert 2 not in found.src


def test_large_half_floats() -> None:
    keys = torch.full((1, 8, 6, 64), 60000.0, dtype=torch.float16, device=DEVICE)
    assert same(ops.match_keys(keys, 2), portable(keys, 2, 0, 0, 0))


@pytest.mark.parametrize("n", [7, 70])
def test_similarities_below_zero(n: int) -> None:
    """What fills a block up must not win against opposites."""
    keys = torch.ones(2, 1, n, 3, device=DEVICE)
    keys[:, :, ::2] = -1
    assert same(ops.match_keys(keys, 3), portable(keys, 3, 0, 0, 0))


@examples(8)
@given(matchings())
def test_the_same_bits_again_and_alone(drawn: Drawn) -> None:
    keys, *rest = drawn
    first = ops.match_keys(keys.requires_grad_(), *rest)
    assert same(ops.match_keys(keys, *rest), first)
    for image in range(keys.shape[0]):
        alone = ops.match_keys(keys[image : image + 1], *rest)
        assert all(torch.equal(a[0], w[image]) for a, w in zip(alone, first, strict=True))


def test_a_stream_of_one_token_and_other_dtypes_are_matched_portably() -> None:
    one = torch.randn(2, 3, 2, 4, device=DEVICE)
    assert same(ops.match_keys(one, 0, 1, 1), portable(one, 0, 1, 1, 0))
    wide = torch.randn(2, 3, 9, 4, device=DEVICE, dtype=torch.float64)
    assert same(ops.match_keys(wide, 2), portable(wide, 2, 0, 0, 0))


def test_the_op_is_what_it_says() -> None:
    checks = ("test_schema", "test_autograd_registration")
    args = (torch.randn(2, 3, 9, 4, device=DEVICE), 2, 1, 1, 0)
    assert kernels.chosen(DEVICE)  # which registers it
    torch.library.opcheck(torch.ops.tome_fx.match.default, args, test_utils=checks)
