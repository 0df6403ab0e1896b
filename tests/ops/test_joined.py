"""Rows made of pieces, compiled: a piece is good for as long as somebody reads it.

Inductor lets the pieces of a row be views of it, and takes the memory of the row once that was read
for the last time; a piece that it had written to in place was then read out of whatever came next.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tome_fx import ops
from tome_fx.ops import MergePlan

N, R = 58, 6


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
