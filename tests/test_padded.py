"""Padding by an op of its own in front of a convolution that keeps the grid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.test_joins import GRID, Attention, C, Convolved, checked

pytestmark = TINY
PADS: dict[str, Callable[[], nn.Module]] = {
    "round": lambda: nn.CircularPad2d(1),
    "reflected": lambda: nn.ReflectionPad2d(1),
    "repeated": lambda: nn.ReplicationPad2d(1),
    "zeros": lambda: nn.ZeroPad2d(1),
    "uneven": lambda: nn.CircularPad2d((2, 0, 0, 2)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PADS)
def test_padding_by_an_op_of_its_own_keeps_the_tokens_too(name: str) -> None:
    fast, plain = checked(Convolved(PADS[name])), checked(Convolved())
    assert fast.schedule == (3, 3)
    assert [block.kind for block in fast.report.blocks] == ["sdpa", "sdpa"]
    kinds = [[u.kind for u in f.report.unmerges] for f in (fast, plain)]
    assert kinds[0] == kinds[1]
    assert fast.report.flop_ratio == plain.report.flop_ratio


class Narrowed(nn.Module):
    """A convolution that loses the borders: what is left are other places, though as many."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.token, self.conv = nn.Parameter(torch.zeros(1, 1, C)), nn.Conv1d(C, C, 2)
        self.attention = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = self.attention[0](x) + x
        both = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.conv(both.transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.attention[1](x)).mean(1))  # type: ignore[no-any-return]


def test_a_class_token_is_no_padding() -> None:
    x = torch.randn(2, 3, 2 * GRID, 2 * GRID)
    fast = tome_fx.transform(Narrowed().eval(), 3, example_inputs=x)
    assert len(fast._located().findings.streams) == 2
