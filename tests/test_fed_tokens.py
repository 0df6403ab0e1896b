"""Tokens that a model is given as they are, without a stem of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance

pytestmark = TINY
C, HEADS, D, N = 8, 2, 4, 24


def centred(count: int) -> Tensor:
    """Angles that run both ways from the middle, put together of two pieces."""
    angles = torch.arange(12.0)[:, None] * torch.tensor([1.0, 0.1])
    return torch.cat([-angles[12 - count + count // 2 :].flip(0), angles[: count // 2]])


def by_rows_and_columns() -> Tensor:
    """The same for rows and for columns of a grid."""
    rows, columns = centred(4)[:, None, :1], centred(6)[None, :, :1]
    return torch.cat([rows.expand(4, 6, 1), columns.expand(4, 6, 1)], -1).reshape(N, 2)


class Turned(nn.Module):
    """Attention with rotary positions and an MLP, over tokens ``[B, N, C]``."""

    def __init__(self, grid: bool) -> None:
        super().__init__()
        self.grid = grid
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))
        self.still = False
        self.angles: Tensor | None = None

    def turn(self, x: Tensor) -> Tensor:
        angles = (by_rows_and_columns() if self.grid else centred(N)) * (not self.still)
        angles = angles if self.angles is None else self.angles
        cos, sin = (t.repeat_interleave(2, -1).to(x.dtype) for t in (angles.cos(), angles.sin()))
        left, right = x[..., ::2], x[..., 1::2]
        return x * cos + torch.stack([-right, left], -1).flatten(-2) * sin

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, D).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(x)  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize("grid", [False, True])
def test_positions_put_together_of_pieces_leave_tokens_what_they_are(grid: bool) -> None:
    model = nn.Sequential(Turned(grid), Turned(grid), Turned(grid)).double().eval()
    x = torch.randn(3, N, C, dtype=torch.float64)
    fast = tome_fx.transform(model, 4, example_inputs=x)
    assert fast.schedule == (4, 4, 4)
    assert not [u for u in fast.report.unmerges if u.op != "output"]
    assert distance(fast(x), model(x)) > 1e-6
    assert distance(fast(x[:1]), fast(x)[:1]) < 1e-12
    for block in model:
        block.still = True  # positions that are the same everywhere
    fast = tome_fx.transform(model, 4, example_inputs=x)
    same = x[:, :1].expand_as(x)
    assert distance(fast(same), model(same)) < 1e-12


class Placed(nn.Module):
    """Positions that are an input of the model, the same for all images, or that it holds."""

    def __init__(self, held: Tensor | None = None) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, C, 2, 2), nn.ModuleList(Turned(False) for _ in "12")
        self.held = held

    def forward(self, image: Tensor, places: Tensor) -> Tensor:
        places = places if self.held is None else self.held
        angles = places[:, None] * torch.tensor([1.0, 0.1], dtype=places.dtype)
        x = self.stem(image).flatten(2).mT
        for block in self.blocks:
            block.angles = angles
            x = block(x)
        return x.mean(1)  # type: ignore[no-any-return]


@torch.no_grad()
def test_positions_that_a_model_is_given_are_a_table() -> None:
    places = torch.randn(16, dtype=torch.float64)
    given, held = Placed().double().eval(), Placed(places).double().eval()
    held.load_state_dict(given.state_dict())
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for remerge in ("mean", "never"):
        fast, other = (
            tome_fx.transform(m, 3, example_inputs=(image, places), remerge=remerge)
            for m in (given, held)
        )
        assert fast.schedule == other.schedule == (3, 3)
        assert not fast.report.unmerges
        assert distance(fast(image, places), other(image, places)) < 1e-12


class Series(nn.Module):
    """Windows of a series are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, C), nn.Linear(C, 3)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(C, HEADS, 16, 0.0, batch_first=True) for _ in "12"
        )

    def forward(self, series: Tensor) -> Tensor:
        x = self.embed(series.unfold(-1, 6, 4))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_windows_of_a_series_are_tokens() -> None:
    model, x = Series().double().eval(), torch.randn(3, 50, dtype=torch.float64)
    fast = tome_fx.transform(model, 3, example_inputs=x)
    assert fast.schedule == (3, 3)
    assert distance(fast(x), model(x)) > 1e-6
    assert distance(fast(x[:1]), fast(x)[:1]) < 1e-12
    periodic = x[:, :4].repeat(1, 13)[:, :50]
    assert distance(fast(periodic), model(periodic)) < 1e-12
