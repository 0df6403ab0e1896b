"""An identity matrix beside pairs of tokens: no group can follow it, so all tokens are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
Head = Callable[[Tensor], Tensor]


def likeness(x: Tensor) -> Tensor:
    z = F.normalize(x, dim=-1)
    return z @ z.mT


def own(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype)


def ridge(x: Tensor) -> Tensor:
    """A Gaussian process, as RoMa has it."""
    kernel = ((likeness(x) - 1) / 0.2).exp()
    return kernel @ torch.linalg.solve(kernel + 0.1 * own(x), x)


def graph(x: Tensor) -> Tensor:
    """Neighbours and itself, normalised by their number."""
    near = (likeness(x) > 0.5).to(x.dtype) + own(x)
    scale = near.sum(-1).rsqrt()
    return (near * scale[:, :, None] * scale[:, None]) @ x


def apart(x: Tensor) -> Tensor:
    return (likeness(x) * (1 - own(x))).square().sum((1, 2))


def whitened(x: Tensor) -> Tensor:
    return (likeness(x) - own(x)).square().sum((1, 2))


def others(x: Tensor) -> Tensor:
    return (likeness(x) * 10 - 1e9 * own(x)).logsumexp(-1)


def filled(x: Tensor) -> Tensor:
    hidden = torch.eye(x.shape[1], dtype=torch.bool)
    return (likeness(x) * 10).masked_fill(hidden, float("-inf")).logsumexp(-1)


class Model(nn.Module):
    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.stem = head, nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x)


def result_of(head: Head) -> tuple[Model, tome_fx.ToMeModule, Tensor]:
    model = Model(head).double().eval()
    randomise(model, 0)
    x = torch.randn(3, 4, 6, dtype=torch.float64)[:, torch.arange(24) // 6]
    return model, tome_fx.transform(model, [4, 3, 2], example_inputs=x, min_ratio=0), x


@torch.no_grad()
@pytest.mark.few(3)
@pytest.mark.parametrize("head", [ridge, graph, apart, whitened, others, filled])
def test_tokens_that_a_table_tells_from_all_others_come_back(head: Head) -> None:
    model, fast, x = result_of(head)
    assert fast.schedule == (4, 3, 2)
    assert any("tells each token from all others" in u.reason for u in fast.report.unmerges)
    assert distance(fast(x), model(x)) < 1e-12


def shared(x: Tensor) -> Tensor:
    """Weights of a softmax and the token itself: a group has the sum of its members."""
    return (likeness(x).softmax(-1) + own(x)) @ x.mean(-1, keepdim=True)


def given_out(x: Tensor) -> Tensor:
    """A rollout's step: of the sum of a group nobody knows whose the token itself was."""
    return (likeness(x).softmax(-1) + own(x)) / 2


def without_itself(x: Tensor) -> Tensor:
    return likeness(x).softmax(-1) * (1 - own(x))


def running(x: Tensor) -> Tensor:
    return (own(x) - 0.5 * likeness(x).softmax(-1)).cumsum(-1)


def against_itself(x: Tensor) -> Tensor:
    """Sums of a group meet sums of it: one of both has to be of members."""
    neighbours = likeness(x).softmax(-1) + own(x)
    return neighbours @ neighbours.mT


@torch.no_grad()
@pytest.mark.parametrize("head", [given_out, without_itself, running, against_itself])
def test_shares_that_leave_with_the_token_itself(head: Head) -> None:
    model, fast, x = result_of(head)
    assert any("tells each token from all others" in u.reason for u in fast.report.unmerges)
    assert distance(fast(x), model(x)) < 1e-12


def rollout(x: Tensor) -> Tensor:
    p = likeness(x).softmax(-1) + own(x)
    return (p / p.sum(-1, keepdim=True)) @ x


def clipped(x: Tensor) -> Tensor:
    """Of a sum of a group the identity is not one part for each."""
    return (likeness(x).softmax(-1) - own(x)).relu() @ x


def sloped(x: Tensor) -> Tensor:
    """A table that is no identity: that of a group is its representative's."""
    place = torch.arange(x.shape[1], dtype=x.dtype)
    return (likeness(x) + 0 * (place[:, None] - place)).square().sum((1, 2))


@torch.no_grad()
@pytest.mark.parametrize("head", [shared, sloped, rollout])
def test_what_a_group_can_follow_stays_merged(head: Head) -> None:
    model, fast, x = result_of(head)
    assert not any("tells each token" in unmerge.reason for unmerge in fast.report.unmerges)
    assert not any(unmerge.kind == "merge" for unmerge in fast.report.unmerges)
    assert distance(fast(x), model(x)) < 1e-12


@torch.no_grad()
def test_before_a_product_that_is_listed() -> None:
    model, fast, x = result_of(clipped)
    assert distance(fast(x), model(x)) > 1e-3
    assert any("rows of a table" in unmerge.reason for unmerge in fast.report.unmerges)
    exact = tome_fx.transform(model, [4, 3, 2], example_inputs=x, min_ratio=0, remerge="never")
    assert distance(exact(x), model(x)) < 1e-12
