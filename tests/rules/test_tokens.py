"""Ops over tokens that know sizes: softmax, sums, means, extremes, norms; and those that do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rules.common import TINY, Eager, N, Projected, check, heads, unmerged

pytestmark = TINY


def scores(x: Tensor) -> Tensor:
    return (heads(x) @ heads(x).transpose(-1, -2)).softmax(-1)


SUMS = {
    "sum": lambda x: x.sum(1, keepdim=True) / N,
    "mean": lambda x: x.mean(dim=-2),
    "mean of patches": lambda x: x[:, 1:].mean(1),
    "mean over everything": lambda x: x.mean((1, 2)),
    "mean of a flat value": lambda x: x.flatten(1).mean(1),
    "sum of folded channels": lambda x: x.flatten(1).sum(1),
    "mean in a wider type": lambda x: x.float().mean(1, dtype=torch.float64),
    "masked mean": lambda x: (x * (x > 0)).sum(1) / (x > 0).sum(1).clamp(min=1),
    "generalised mean": lambda x: x.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3),
    "number of positives": lambda x: (x > 0).sum(1),
    "number as int32": lambda x: (x > 0).int().sum(1),
    "share of positives": lambda x: (x > 0).to(x.dtype).mean(1),
    "received attention": lambda x: scores(x).sum((1, 2)).sigmoid(),
    "received attention, flat": lambda x: scores(x).mean(2).flatten(1).sin().sum(1),
    "soft choice": lambda x: (x[..., :1].softmax(1) * x).sum(1),
    "soft choice by a product": lambda x: x[..., :2].transpose(1, 2).softmax(-1) @ x,
    "share of tokens": lambda x: x.softmax(1),
    "square root of shares": lambda x: x.softmax(1).sqrt(),
    "softmax of a flat value": lambda x: x.flatten(1).softmax(1).unflatten(1, (N, -1)),
    "gate": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
}
EXTREMES = {
    "amax": lambda x: x.amax(1, keepdim=True),
    "amin": lambda x: x.amin((1, 2)),
    "max": lambda x: x.max(1)[0],
    "max values": lambda x: x.max(dim=1, keepdim=True).values,
    "min of patches": lambda x: x[:, 1:].min(1).values,
    "any": lambda x: (x > 1).any(1),
    "all": lambda x: (x > -3).all(1, keepdim=True),
    "largest weight": lambda x: scores(x).amax(-1),
    "scale of a tensor": lambda x: x / x.abs().amax(),
    "largest of all": lambda x: x - x.max(),
    "largest weight of all": lambda x: scores(x) / scores(x).amax((0, 1, 2, 3), keepdim=True),
    "of all tokens of all images": lambda x: x - x.flatten(0, 1).amin(0),
}
NORMS = {
    "norm": lambda x: x.norm(dim=1),
    "written norm": lambda x: torch.linalg.norm(x, dim=1),
    "norm of order 1": lambda x: x.norm(p=1, dim=1, keepdim=True),
    "norm of order 3": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    "largest": lambda x: x.norm(p=math.inf, dim=1),
    "of tokens and channels": lambda x: x.norm(dim=(1, 2)),
    "normalize": lambda x: F.normalize(x, dim=1),
    "response normalisation": lambda x: x * x.norm(dim=1, keepdim=True).softmax(-1),
    "logsumexp": lambda x: x.logsumexp(1),
    "logsumexp of scores": lambda x: (x @ x.transpose(1, 2)).logsumexp(-1),
    "log of shares": lambda x: x.log_softmax(1),
    "the same in another dtype": lambda x: x.float().log_softmax(1, dtype=torch.float64),
    "log of shares of keys": lambda x: (x @ x.transpose(1, 2)).log_softmax(-1),
    "entropy": lambda x: (scores(x) * scores(x).log()).sum(-1),
    "entropy by the logarithm": lambda x: (x.softmax(1) * x.log_softmax(1)).sum(1),
}


SPREADS = {
    "variance": lambda x: x.var(1),
    "of patches": lambda x: x[:, 1:].var(dim=1, keepdim=True),
    "biased": lambda x: x.var(1, unbiased=False),
    "corrected by two": lambda x: x.var(1, correction=2),
    "deviation": lambda x: x.std(dim=-2, keepdim=True),
    "of tokens and channels": lambda x: x.std((1, 2)),
    "of a flat value": lambda x: x.flatten(1).var(1),
    "with the mean": lambda x: torch.cat(torch.var_mean(x, 1), -1),
    "deviation and mean": lambda x: torch.cat(torch.std_mean(x, 1, keepdim=True), -1),
    "standardised": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "weights' variance": lambda x: scores(x).var(-1),
}


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "group", [SUMS, EXTREMES, NORMS, SPREADS], ids=["sum", "extreme", "norm", "spread"]
)
def test_stays_merged(group: dict[str, object]) -> None:
    assert unmerged(group, how="beside") == set()


def test_logits_between_product_and_softmax() -> None:
    blocks = {
        "centred": Eager(lambda a: a - a.mean(-1, keepdim=True)),
        "largest taken off": Eager(lambda a: a - a.amax(-1, keepdim=True)),
        "the same by max": Eager(lambda a: a - a.max(-1, keepdim=True)[0]),
        "capped": Eager(lambda a: 3 * torch.tanh(a / 3)),
        "clamped": Eager(lambda a: a.clamp(-2, 2)),
        "in another dtype": Eager(lambda a: a.float().double()),
        "over heads before": Eager(lambda a: a.softmax(1)),
        "off by one": Eager(lambda a: F.pad(a, (1, 0)), lambda a: a[..., 1:]),
        "largest kept": Eager(lambda a: a.masked_fill(a < a.amax(-1, keepdim=True) - 1, -9.0)),
    }
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


def ties(x: Tensor) -> Tensor:
    """Duplicates are equal up to rounding, which would decide which of them is the largest."""
    return (1e6 * x).round()


TELLS_APART = {
    "product": lambda x: (1 + x / 9).prod(1),
    "median": lambda x: x.median(1)[0],
    "cumulative sum": lambda x: x.cumsum(1),
    "cumulative log": lambda x: x.logcumsumexp(1),
    "place of the largest": lambda x: ties(x).argmax(1),
    "place and value": lambda x: ties(x).max(1),
    "sorted": lambda x: x.sort(1)[0],
    "the three largest": lambda x: x.topk(3, dim=1)[0],
    "number of values": lambda x: x.relu().norm(p=0, dim=1),
    "norm of a matrix": lambda x: torch.linalg.norm(x, dim=(1, 2)),
    "adaptive pool": lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 2),
}


def test_needs_all_tokens() -> None:
    expected = {"prod", "median", "cumsum", "logcumsumexp", "argmax", "max", "sort", "topk",
                "linalg_norm", "linalg_vector_norm",
                "adaptive_avg_pool1d"}  # fmt: skip
    assert unmerged(TELLS_APART, how="aside") == expected


def kth(name: str, dim: int) -> Callable[[Tensor], Tensor]:
    """Logits below the fifth largest along an axis of tokens are hidden."""

    def hidden(a: Tensor) -> Tensor:
        a = ties(a) / 1e6
        if name == "topk":
            return a.masked_fill(a < a.topk(5, dim)[0].narrow(dim, 4, 1), -1e4)
        return a.masked_fill(a < a.kthvalue(a.shape[dim] - 4, dim, keepdim=True)[0], -1e4)

    return hidden


IN_PLACE = {
    "flip": lambda a: a + a.flip(-1),
    "roll": lambda a: a * a.roll(1, -1),
    "sort": lambda a: a + (ties(a) / 1e6).sort(-1)[0],
    "cummax": lambda a: a - a.cummax(-1)[0],
    "diff": lambda a: a + a.diff(dim=-1, prepend=a[..., :1]),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", IN_PLACE)
def test_logits_that_meet_what_became_of_their_places_come_back_as_a_whole(name: str) -> None:
    """Averaged along the keys, other keys would stand at a place."""
    check(Eager(IN_PLACE[name]), sites=3)
    found = check(Eager(IN_PLACE[name]), sites=3, remerge="never")
    assert {u.kind for u in found} == {"unmerge"}


@pytest.mark.parametrize("dim", [-1, -2], ids=["keys", "queries"])
@pytest.mark.parametrize("name", ["topk", "kthvalue"])
def test_rows_of_logits_come_back_along_the_axis_that_is_ordered_alone(name: str, dim: int) -> None:
    """Were the other one unmerged and averaged again, rounding would hide the fifth itself."""
    found = check(Eager(kth(name, dim)), sites=3)
    assert [(u.kind, u.op.split(".")[1]) for u in found] == [("unmerge", name)]


def test_what_mixes_images_is_exact() -> None:
    """No model does this; a rewrite must not fail all the same."""
    mixed = {"mean": lambda x: x.mean(0), "all": lambda x: x.mean(), "one": lambda x: x[0],
             "largest at each place": lambda x: x.amax((0, 2))}  # fmt: skip
    assert unmerged(mixed, how="aside") == {"mean", "select", "amax"}


def test_a_softmax_that_is_no_attention_is_no_site() -> None:
    def routed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (torch.stack([q, k, v], -1) * q[..., :3].softmax(-1)[:, :, None]).sum(-1)

    assert unmerged(Projected(routed)) == set()
