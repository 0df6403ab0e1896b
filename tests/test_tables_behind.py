"""Tables of places behind the last block: centres of boxes, coordinates, positions of a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
KINDS, PLACES, C = 4, 24, 8
Head = Callable[[Tensor, Tensor, nn.Linear], Tensor]


class Model(nn.Module):
    """Three layers of attention that know no places, and a head that is given a table of them."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.stem, self.last = head, nn.Linear(6, C), nn.Linear(2 * C, C)
        self.layers = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(3))
        self.table = nn.Parameter(torch.randn(PLACES, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x, self.table, self.last)


def boxes(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return torch.cat([x[..., :2] + table[:, :2], x[..., 2:].exp()], -1)


def with_logits(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    """As OWL-ViT has it."""
    return (x + torch.logit(table.sigmoid())).sigmoid()


def coordinates(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return torch.cat([x, table.expand(len(x), -1, -1)], -1)


def most(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return (x + table).amax(1)


def mean_of_parts(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return (x + table).relu().mean(1)


def narrowed(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return last(torch.cat([(x + table).narrow(1, 0, 1), x[:, :1]], -1))


def product(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    """A row of weights for each place."""
    return torch.einsum("bnc,nc->bn", x, table)


def work_behind(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    """CoordConv, as a linear."""
    return last(torch.cat([x, table.expand(len(x), -1, -1)], -1))


def first(x: Tensor, table: Tensor, last: nn.Linear) -> Tensor:
    return (x + table)[:, 0]


def result_of(head: Head, remerge: Literal["mean", "never"]) -> tuple[float, list[tuple[str, str]]]:
    """How far it is from the model where all merged tokens are duplicates, and what is reported."""
    model = Model(head).double().eval()
    randomise(model, 0)
    x = torch.randn(3, KINDS, 6, dtype=torch.float64)[:, torch.arange(PLACES) // (PLACES // KINDS)]
    fast = tome_fx.transform(model, [4, 3, 2], example_inputs=x, min_ratio=0, remerge=remerge)
    assert fast.schedule == (4, 3, 2)
    return distance(fast(x), model(x)), [(u.kind, u.reason) for u in fast.report.unmerges]


@torch.no_grad()
@pytest.mark.parametrize("remerge", ["mean", "never"])
@pytest.mark.parametrize("head", [boxes, with_logits, coordinates, most, mean_of_parts, product])
def test_all_tokens_meet_a_table_where_nothing_is_saved_behind(
    head: Head, remerge: Literal["mean", "never"]
) -> None:
    far, found = result_of(head, remerge)
    assert far < 1e-12
    assert found[0] == ("unmerge", "it meets a table of what is at each place")


@torch.no_grad()
def test_before_more_work_a_group_has_its_representatives_row() -> None:
    far, found = result_of(work_behind, "mean")
    assert far > 1e-3
    assert [kind for kind, _ in found] == ["merge", "unmerge"]
    assert "rows of a table for each place are their representative's" in found[0][1]
    far, found = result_of(work_behind, "never")
    assert far < 1e-12
    assert [kind for kind, _ in found] == ["unmerge"]


@torch.no_grad()
@pytest.mark.parametrize("head", [first, narrowed])
def test_no_token_comes_back_for_one_that_is_cut_out(head: Head) -> None:
    far, found = result_of(head, "mean")
    assert far < 1e-12
    assert found == []
