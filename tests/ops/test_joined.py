"""Rows made of pieces, compiled: a piece is good for as long as somebody reads it.

Inductor lets the pieces of a row be views of it, and takes the memory of the row once that was read
for the last time; a piece that it had written to in place was then read out of whatever came next.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY
from tome_fx import ops
from tome_fx.ops import MergePlan

pytestmark = TINY
N, R, C = 58, 6, 16


def _of_sizes(plan: MergePlan, size: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    piece = ops.merged_size(plan, size, x)
    return piece, ops.along([1, piece], 2, 0, 1)


def _of_maps(plan: MergePlan, size: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    piece = ops.assignment(plan)
    return piece, ops.join_maps([piece, 1], [N, 1])


@pytest.mark.compiler
@pytest.mark.parametrize("made", [_of_sizes, _of_maps])
def test_a_piece_outlives_its_row(made: Callable[..., tuple[Tensor, Tensor]]) -> None:
    def run(plan: MergePlan, size: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        piece, row = made(plan, size, x)
        y = torch.mm(x, x[:4]) * row.sum()  # the last that reads the row
        other = torch.zeros_like(row) + y[:3, :1].to(row.dtype)  # as large as the row
        z = torch.mm(x, (other[:, :4].T @ other[:, :4]).to(x.dtype))
        return piece + z[:3, :1], other.sum()

    generator = torch.Generator().manual_seed(0)
    plan = ops.match(torch.randn(3, N // 2, N // 2, generator=generator), R)
    size = torch.randint(1, 5, (3, N), generator=generator).double()
    x = torch.randn(64, 4, generator=generator, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(run)(plan, size, x)
    for one, other in zip(compiled, run(plan, size, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Remembering(nn.Module):
    """A block whose MLP is given a token more, so that merged tokens are joined and added to."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies
        self.first, self.second = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, C), nn.Linear(C, C)
        self.memory = nn.Parameter(torch.randn(1, 1, C))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        whole = x.clone() if self.copies else x  # a copy that a compiler takes away
        more = torch.cat([self.memory.expand(x.shape[0], -1, -1), whole], 1)
        return x + self.down(F.gelu(self.up(self.second(more))))[:, 1:]


@pytest.mark.compiler
@torch.no_grad()
@pytest.mark.parametrize("copies", [False, True])
def test_merged_tokens_outlive_a_row_that_they_are_joined_to(copies: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Remembering(copies), Remembering(copies)).double().eval()
    x = torch.randn(4, 24, C, dtype=torch.float64)
    fast = tome_fx.transform(model, 4, example_inputs=x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(fast)(x), fast(x), rtol=1e-9, atol=1e-9)
