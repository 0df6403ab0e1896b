"""A table that weighs each token for a sum: no group can follow it, so all tokens are there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.laws.common import TINY, distance
from tests.test_diagonals import Head, result_of

pytestmark = TINY
REASON = "weighs each token"


def slope(x: Tensor) -> Tensor:
    return torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)[:, None]


def mean(x: Tensor) -> Tensor:
    return (x * slope(x)).mean(1)


def share(x: Tensor) -> Tensor:
    w = slope(x)
    return (2 * (x.relu() * w.expand_as(x))).sum(1) / w.sum(0)


def quotient(x: Tensor) -> Tensor:
    return (x / slope(x)).sum((1, 2))


def score(x: Tensor) -> Tensor:
    """One number for each token."""
    return (slope(x)[:, 0] * x.square().mean(-1)).sum(-1)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("head", [mean, share, quotient, score])
def test_each_member_counts_by_its_own_weight(head: Head) -> None:
    model, fast, x = result_of(head)
    assert fast.schedule == (4, 3, 2)
    assert [u.reason for u in fast.report.unmerges if REASON in u.reason]
    assert distance(fast(x), model(x)) < 1e-12


def even(x: Tensor) -> Tensor:
    """The same for all tokens, be it written out."""
    return (x * torch.full((x.shape[1], 1), 0.5, dtype=x.dtype)).mean(1)


def largest(x: Tensor) -> Tensor:
    """In front of no sum."""
    return (x * (0 * slope(x) + 1)).amax(1)


def pairs(x: Tensor) -> Tensor:
    """Of keys, where a table takes part by its sum over each group."""
    weights = (x @ x.mT).softmax(-1)
    return (weights * (slope(x).mT + 1)).sum(-1)


def of_image(x: Tensor) -> Tensor:
    return (x * x.mean(-1, keepdim=True)).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("head", [even, largest, pairs, of_image])
def test_what_needs_no_weights_of_its_own_stays_merged(head: Head) -> None:
    model, fast, x = result_of(head)
    assert not [u.reason for u in fast.report.unmerges if REASON in u.reason]
    assert distance(fast(x), model(x)) < 1e-12
