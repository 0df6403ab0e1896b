"""A mask by which some tokens look at a part of the others, which see everything.

So queries of a segmenter that stand beside the patches read those of a mask that they have found.
What a query does not look at is no padding: the other patches do. Where none looks at any patch,
the mask alone cannot tell them from padding, which merges with what is like it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
QUERIES, PATCHES, KINDS = 3, 24, 4


class Asking(nn.Module):
    """Queries beside patches; ``looks [B, queries, patches]`` says which of these they see."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, QUERIES, 8))
        self.stem, self.layers = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 24) for _ in range(3))

    def forward(self, x: Tensor, looks: Tensor) -> Tensor:
        x = torch.cat([self.queries.expand(len(x), -1, -1), self.stem(x)], dim=1)
        mask = torch.ones(len(x), x.shape[1], x.shape[1], dtype=torch.bool)
        mask[:, :QUERIES, QUERIES:] = looks
        for layer in self.layers:
            q, k, v = (part[:, None] for part in layer(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])[:, 0]
        return x


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_equal_patches_merge_first(share: float) -> None:
    """By kinds of patches, which a query sees all of or none of; ``share`` of them, or none."""
    model = Asking().double().eval()
    randomise(model, 0)
    generator = torch.Generator().manual_seed(1)
    kind = torch.randint(0, KINDS, (2, PATCHES), generator=generator)
    rows = torch.randn(KINDS, 6, dtype=torch.float64, generator=generator)
    seen = torch.rand(2, QUERIES, KINDS, generator=generator) < share
    looks = seen.gather(2, kind[:, None].expand(-1, QUERIES, -1))
    x = rows[kind]
    fast = tome_fx.transform(model, [4, 4, 0], example_inputs=(x, looks), min_ratio=0)
    assert fast.schedule == (4, 4, 0)
    assert any("which tokens see which" in note for note in fast.report.notes)
    assert distance(fast(x, looks), model(x, looks)) < 1e-9
    other = torch.randn(2, PATCHES, 6, dtype=torch.float64)
    assert distance(fast(other, looks), model(other, looks)) > 1e-6
