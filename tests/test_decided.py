"""Branches that the model's own buffers decide."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise
from tome_fx.capturing.decided import DecidedByBuffers

pytestmark = TINY
C, DEPTH = 16, 3


class Scheduled(nn.Module):
    """Each block hides some tokens, if a share that training sets asks for it (EoMT)."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in shares)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C)) for _ in shares
        )
        self.register_buffer("shares", torch.tensor(shares))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for layer, (qkv, mlp) in enumerate(zip(self.qkv, self.mlp, strict=True)):
            q, k, v = qkv(x).chunk(3, -1)
            mask = None
            if self.training or self.shares[layer] > 0:
                mask = (x.mean(-1) > x.mean((1, 2))[:, None] - 9.0)[:, None]
            x = x + F.scaled_dot_product_attention(q, k, v, mask)
            x = x + mlp(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0), (0.0, 0.5, 0.0)])
def test_the_program_is_the_one_for_what_they_hold(shares: tuple[float, ...]) -> None:
    model = Scheduled(*shares).double().eval()
    randomise(model)
    model.shares = torch.tensor(shares)
    x = torch.randn(2, 3, 8, 8).double()
    fast = tome_fx.transform(model, 3, example_inputs=(x,), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    assert "branches on the values of shares" in str(fast.report)
    masked = [n for n in fast.graph.nodes if n.target is torch.ops.aten.gt.Tensor]
    assert len(masked) == sum(share > 0 for share in shares)
    colour = x[..., :1, :1].expand_as(x).contiguous()
    assert distance(run(fast, colour), run(model, colour)) < 1e-9
    fast.r = 0
    assert distance(run(fast, x), run(model, x)) == 0.0


def test_what_export_says_of_a_try_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    tome_fx.transform(Scheduled(0.5).eval(), 2, example_inputs=torch.randn(2, 3, 8, 8), min_ratio=0)
    assert capsys.readouterr() == ("", "")


class Counted(Scheduled):
    """The number is written on the way, so it is none of the model's own."""

    def forward(self, image: Tensor) -> Tensor:
        self.shares.add_(image.mean())
        return super().forward(image)


def test_a_buffer_that_images_write_to_decides_nothing() -> None:
    with pytest.raises(tome_fx.CaptureError, match="shares"):
        tome_fx.transform(
            Counted(0.0, 0.0).eval(), 3, example_inputs=torch.randn(2, 3, 8, 8), capture="export"
        )


class Judged(Scheduled):
    """The number is one of the images."""

    def forward(self, image: Tensor) -> Tensor:
        x = super().forward(image)
        return -x if (image.mean() > self.shares[0]) else x


def test_an_image_still_decides_nothing() -> None:
    with pytest.raises(tome_fx.CaptureError, match=r"image\.mean"):
        tome_fx.transform(Judged(0.0, 0.0).eval(), 3, example_inputs=(torch.randn(2, 3, 8, 8),))


class LookedUp(Scheduled):
    """A number of a buffer finds a scale by its name, and the grid says how tokens lie."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0, 0.0)
        self.register_buffer("kind", torch.tensor([1]))

    def forward(self, image: Tensor, grid: Tensor) -> Tensor:
        scale = {0: 3.0, 1: 2.0}[self.kind[0].item()]
        high = int(grid[0, 1])
        return super().forward(image * scale) * high


def test_a_buffer_and_a_grid() -> None:
    model, x, grid = LookedUp().double().eval(), torch.randn(2, 3, 8, 8).double(), [[1, 4, 4]]
    fast = tome_fx.transform(model, 3, example_inputs=(x, torch.tensor(grid)), min_ratio=0)
    assert fast.schedule == (3, 3, 3)
    fast.r = 0
    assert torch.equal(fast(x, torch.tensor(grid)), model(x, torch.tensor(grid)))


def calls_for_an_op(count: int) -> int:
    """The Python functions that one op calls beside so many batch norms."""
    calls = 0

    def counted(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    x = torch.ones(2)
    with DecidedByBuffers(nn.ModuleList(nn.BatchNorm1d(2) for _ in range(count))):
        before = sys.getprofile()
        sys.setprofile(counted)
        try:
            x + x
        finally:
            sys.setprofile(before)
    return calls


def test_buffers_that_decide_nothing_cost_nothing() -> None:
    """Each value of a trace is held against all buffers: a minute, if that calls a function."""
    assert calls_for_an_op(400) == calls_for_an_op(4) > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_has_buffers_of_its_own() -> None:
    x = torch.ones(2)
    with DecidedByBuffers(nn.ModuleList([torch.jit.script(nn.BatchNorm1d(2))])) as reading:
        assert torch.equal(x + x, 2 * x)
    assert not reading.serves
