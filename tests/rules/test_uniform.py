"""A value that is the same at each position, until a table of positions meets it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.rules.common import LABELS, TINY, C, N, check, random, tied

pytestmark = TINY
TABLE = tied(random(1, N, C), (1,))
STEPS = torch.ones(1, N, 1, dtype=torch.float64)


def everywhere(x: Tensor) -> Tensor:
    """``[B, N, C]`` with an image's mean at each position."""
    return x.mean(1, keepdim=True).expand(-1, N, -1)


OPS = {
    "added": lambda x: x + (everywhere(x) + TABLE),
    "added in front": lambda x: x + (TABLE + everywhere(x)),
    "times": lambda x: x + x.mean(1, keepdim=True).repeat(1, N, 1) * TABLE[0],
    "where": lambda x: x + torch.where(TABLE > 0, everywhere(x), 0.0),
    "of ones": lambda x: x + STEPS * TABLE,
    "of zeros": lambda x: x + (x.new_zeros(x.shape[0], N, C) + TABLE).sin(),
    "beside": lambda x: x + torch.cat((x, everywhere(x) + TABLE), -1)[..., C:],
    "addcmul": lambda x: x + torch.addcmul(everywhere(x), TABLE, TABLE),
    "einsum": lambda x: x + torch.einsum("bnc,nd->bnc", everywhere(x), TABLE[0]),
}


def test_a_table_tells_positions_apart() -> None:
    assert len(set(LABELS)) > 2
    check(OPS)


def test_steps_tell_positions_apart() -> None:
    def counted(x: Tensor) -> Tensor:
        steps = x.new_ones(1, N, 1).cumsum(1)
        return steps.expand(x.shape[0], -1, C).sin() * x.mean(1, keepdim=True)

    check({"counted": counted}, how="aside")
