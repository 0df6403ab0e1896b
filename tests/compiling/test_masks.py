"""Masks of padding, made as libraries make them: by indices of every image and every key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.compiling.common import R, backend
from tests.rules.common import TINY

pytestmark = TINY
WIDTH, TOKENS = 32, 14


class Padded(nn.Module):
    """Ids through two layers that look at no padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, WIDTH)
        self.project = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        batch, tokens = ids.shape
        images = torch.arange(batch)[:, None, None, None]
        keys = (torch.arange(tokens) + 0)[None, None, None]
        mask = valid.to(torch.bool)[images, keys]
        x: Any = self.table(ids)
        for project, mlp in zip(self.project, self.mlp, strict=True):
            q, k, v = project(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + y.transpose(1, 2).flatten(2)
            x = x + mlp(x.tanh())
        return (x * valid[..., None]).sum(1)  # type: ignore[no-any-return]


def inputs() -> tuple[Tensor, Tensor]:
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) * 7 % 50
    return ids, (torch.arange(TOKENS) < torch.tensor([[9], [12]])).long()


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("dynamic", [None, True])
def test_padding_is_held_apart(dynamic: bool | None) -> None:
    """Whether the batch is a number or a symbol; what stands in the padding changes nothing."""
    model, chosen = Padded().eval(), backend()
    ids, valid = inputs()
    fast = tome_fx.transform(model, R, example_inputs=(ids, valid), min_ratio=0)
    compiled = torch.compile(model, backend=chosen, dynamic=dynamic, fullgraph=True)
    other = torch.where(valid.bool(), ids, 49 - ids)
    for given in (ids, other):
        torch.testing.assert_close(compiled(given, valid), fast(ids, valid), rtol=1e-5, atol=1e-5)
    assert chosen.reports[-1].schedule == (R, R)
    assert not torch.allclose(compiled(ids, valid), model(ids, valid), rtol=1e-3, atol=1e-3)
