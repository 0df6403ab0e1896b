"""What the tests of kernels draw."""

from __future__ import annotations

import os
import random

import torch
from hypothesis import strategies as st
from torch import Tensor

from tome_fx import ops

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def laid_out(x: Tensor, rng: random.Random) -> Tensor:
    """The same numbers with the axes in another order in memory, and gaps between them."""
    order = rng.sample(range(x.dim()), x.dim())
    stored = x.permute(order)
    gaps = stored.new_full((*stored.shape, 2), float("nan"))
    gaps[..., 0] = stored
    inverse = [order.index(axis) for axis in range(x.dim())]
    return gaps[..., 0].permute(inverse) if rng.random() < 0.5 else stored.clone().permute(inverse)


@st.composite
def matchings(draw: st.DrawFn) -> tuple[Tensor, int, int, int, int]:
    """Keys ``[B, H, N, C]`` in any layout, ``r`` from 0 to ``|A|``, parity, front, back."""
    rng = random.Random(draw(st.integers(0, 2**20)))
    n, front, back = rng.randint(2, 40), rng.randint(0, 3), rng.randint(0, 2)
    parity = rng.randint(0, 1)
    keys = torch.randn(rng.randint(1, 3), rng.randint(1, 3), front + n + back, rng.randint(1, 20))
    a = len(range(parity, n, 2))
    return laid_out(keys, rng).to(DEVICE), rng.choice([0, 1, a // 2, a]), parity, front, back


@st.composite
def merges(
    draw: st.DrawFn, least: int = 2
) -> tuple[Tensor, Tensor | None, ops.MergePlan, int, int]:
    """``x [B, N, C]`` in any layout, sizes or None, a plan, front, back."""
    rng = random.Random(draw(st.integers(0, 2**20)))
    n, front, back, batch = rng.randint(least, 12), rng.randint(0, 2), rng.randint(0, 2), 2
    parity = rng.randint(0, 1)
    a = len(range(parity, n, 2))
    # Few different scores: many tokens join one slot.
    scores = torch.randint(0, 3, (batch, a, n - a)).float()
    plan = ops.match(scores, rng.choice([0, 1, a // 2, a]), parity)
    # One block of channels, and two that are filled or not.
    width = rng.choice([rng.randint(1, 40), rng.randint(1, 40), 70, 96])
    x = laid_out(torch.randn(batch, front + n + back, width), rng)
    size = torch.randint(1, 9, (batch, n)).float() if rng.random() < 0.7 else None
    on = [None if t is None else t.to(DEVICE) for t in (x, size, *plan)]
    return on[0], on[1], ops.MergePlan(*on[2:]), front, back
