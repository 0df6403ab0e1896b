"""Which values follow from the same truth about the places of an image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY

pytestmark = TINY
N, C, HEADS = 16, 8, 2


class Pooled(nn.Module):
    """Blocks that attend to ``valid [B, N]`` tokens, and a head that pools by ``told(valid)``."""

    def __init__(self, told: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.told = nn.Linear(6, C), told
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            q, k, v = self.qkv(x).reshape(-1, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :] != 0)
            x = x + self.out(y.transpose(1, 2).reshape(-1, N, C))
        return (x * self.told(valid)[..., None]).sum(1)


SAME = {
    "as it is": lambda valid: (valid != 0).double(),
    "filled": lambda valid: torch.zeros(valid.shape).double().masked_fill(valid != 0, 3.0),
    "filled in its shape": lambda valid: torch.zeros_like(valid, dtype=torch.float64).masked_fill(
        valid != 0, 3.0
    ),
    "chosen": lambda valid: torch.where(valid != 0, 1.0, -2.0).double(),
}
OTHER = {
    "a number, not its truth": lambda valid: valid.double(),
    "another truth": lambda valid: (valid > 1).double(),
    "with a table": lambda valid: (valid != 0).double() * torch.arange(N).double(),
    "turned round": lambda valid: (valid != 0).double().flip(1),
    "columns for rows": lambda valid: (
        (valid != 0).double().reshape(-1, 4, 4).transpose(1, 2).reshape(-1, N)
    ),
    "beside itself": lambda valid: (valid != 0).double() * (valid != 0).double().flip(1),
}


def inputs() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, N, 6, dtype=torch.float64)
    return x, torch.tensor([[2] * 6 + [1] * 10, [1] * 9 + [0] * 7, [2, 1] * 6 + [0] * 4])


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_pooling_by_a_mask(name: str) -> None:
    """What follows from the mask of attention merges exactly; what does not, meets all tokens."""
    model = Pooled({**SAME, **OTHER}[name]).double().eval()
    randomise(model, 1)
    x, valid = inputs()
    fast = tome_fx.transform(model, 3, example_inputs=(x, valid))
    places = [u for u in fast.report.unmerges if u.op != "output"]
    assert (len(places) == 0) == (name in SAME)
    told = torch.broadcast_to(model.told(valid), (3, N))
    apart = 0.0
    for image, slots in enumerate(fast.token_map(x, valid)[-1]):
        for slot in slots.unique():
            members = told[image][slots == slot]
            apart = max(apart, float(members.max() - members.min()))
    assert (apart == 0) == (name in SAME)
