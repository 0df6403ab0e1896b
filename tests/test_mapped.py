"""Parts of a model that run under ``torch.vmap``."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.tiny import images, tiny
from tests.zoo.entry import randomise

pytestmark = TINY
C, HEADS = 8, 2


def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.5).softmax(-1) @ v


class Mapped(nn.Module):
    """Blocks, a pool and a head that are written for one image, or for all."""

    def __init__(self, attention: bool, head: bool, region: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.attention, self.mapped, self.region = attention, head, region

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        with torch.autocast("cuda", enabled=False) if self.region else nullcontext():
            x = x * x.mean((1, 2), keepdim=True).cos()
        attend = torch.vmap(written) if self.attention else written
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            q, k, v = qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + attend(q, k, v).transpose(1, 2).flatten(2)
            x = x + mlp(x).relu()
        if self.mapped:
            return torch.vmap(lambda tokens: self.head(tokens.mean(0)))(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.few(2)
@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize(("attention", "head"), [(True, False), (False, True), (True, True)])
def test_what_is_mapped_over_images_is_about_all_of_them(
    attention: bool, head: bool, region: bool
) -> None:
    model = Mapped(attention, head, region).eval()
    randomise(model)
    model.double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(model, 4, example_inputs=x[:2], min_ratio=0)
    assert fast.schedule == (4, 4)
    assert distance(run(fast, x), run(model, x)) > 1e-6
    flat = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, flat), run(model, flat)) < 1e-9
    fast.r = 0
    assert distance(run(fast, x), run(model, x)) < 1e-12


class Unfollowed(nn.Module):
    """A part under ``vmap`` that makes a number, behind a write: no graph is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, image: Tensor) -> Tensor:
        table = torch.zeros(3)
        table[1] = 2
        return self.body(torch.vmap(lambda x: x + torch.tensor(1.0) * table[1])(image))  # type: ignore[no-any-return]


@torch.no_grad()
def test_what_cannot_be_traced_leaves_no_level_open() -> None:
    torch._dynamo.reset()
    model, x = Unfollowed(), images()
    chosen = tome_fx.backend(2, inner_backend="eager", min_ratio=0)
    compiled = torch.compile(model, backend=chosen)
    with pytest.warns(tome_fx.ToMeWarning, match="compiled without merging"):
        found = compiled(x)
    assert torch.equal(found, model(x))
