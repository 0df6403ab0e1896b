"""What attention is joined to its residual by, and where its queries come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.zoo.entry import randomise

pytestmark = TINY
C, GRID = 16, 4
GATES = torch.randn(2, 3 * C, C, generator=torch.Generator().manual_seed(0)).double() / 4
Join = Callable[[Tensor, Tensor], Tensor]


class Attention(nn.Module):
    def __init__(self, permuted: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.permuted = nn.Linear(C, 3 * C), nn.Linear(C, C), permuted

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 2, C // 2)).unbind(2)
        if self.permuted:
            q, k, v = (torch.einsum("bn...c->b...nc", t) for t in heads)
        else:
            q, k, v = (t.transpose(1, 2) for t in heads)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(mixed)  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))


class Model(nn.Module):
    """Two blocks around one way to join."""

    def __init__(self, join: Join, permuted: bool = False) -> None:
        super().__init__()
        self.join, self.stem = join, nn.Conv2d(3, C, 2, 2)
        self.attention = nn.ModuleList(Attention(permuted) for _ in range(2))
        self.mlp = nn.ModuleList(mlp() for _ in range(2))
        self.head = nn.Linear(C, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for attention, body in zip(self.attention, self.mlp, strict=True):
            x = self.join(x, attention(x))
            x = self.join(x, body(x))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def checked(model: nn.Module, *inputs: Tensor, r: int = 3) -> Any:
    """Transform, and hold the result to the duplicates law on images of one colour each."""
    randomise(model)
    silence(model.double().eval())
    noise = torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, r, example_inputs=(noise, *inputs))
    colour = noise[..., :1, :1].expand_as(noise).contiguous()
    with torch.no_grad():
        assert distance(fast(colour, *inputs), model(colour, *inputs)) < 1e-9
        assert distance(fast(noise, *inputs), model(noise, *inputs)) > 1e-6
    return fast


@torch.no_grad()
def silence(model: nn.Module) -> None:
    """Convolutions over the grid see their own place alone, so that a border is no difference."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            middle = module.weight[..., 1, 1].clone()
            nn.init.zeros_(module.weight)
            module.weight[..., 1, 1] = middle


def gated(x: Tensor, y: Tensor) -> Tensor:
    """The branch is a step, and the residual the state, of a recurrent cell on rows of tokens."""
    return torch.gru_cell(y.flatten(0, 1), x.flatten(0, 1), *GATES).view_as(x)


JOINS: dict[str, Join] = {
    "add": lambda x, y: y + x,
    "subtract": lambda x, y: x - y,
    "interpolate": lambda x, y: torch.lerp(x, y, 0.3),
    "scaled add": lambda x, y: torch.addcmul(x, y, y.new_full((C,), 0.5)),
    "normalised": lambda x, y: F.normalize(torch.lerp(x, F.normalize(y, dim=-1), 0.4), dim=-1),
    "gated": gated,
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", JOINS)
def test_ways_to_join(name: str) -> None:
    fast = checked(Model(JOINS[name]))
    assert fast.schedule == (3, 3)
    assert not fast.report.unmerges
    assert [block.mlp for block in fast.report.blocks] == ["mlp.0", "mlp.1"]


def test_heads_by_an_einsum_of_one_operand() -> None:
    fast = checked(Model(torch.add, permuted=True))
    assert [block.kind for block in fast.report.blocks] == ["sdpa", "sdpa"]
    assert not fast.report.unmerges


class Copies(nn.Module):
    """Two copies of the stream, mixed by learned weights around each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.bodies = nn.ModuleList([Attention(), mlp(), Attention(), mlp()])
        self.mix = nn.ParameterList(torch.randn(2, 3) for _ in range(4))
        self.back = nn.ParameterList(torch.randn(2) for _ in range(4))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = x[:, None].expand(-1, 2, -1, -1)
        for body, mix, back in zip(self.bodies, self.mix, self.back, strict=True):
            branch, *kept = torch.einsum("bsnc,st->tbnc", x, mix).unbind(0)
            x = torch.stack(kept, 1) + body(branch)[:, None] * back[:, None, None]
        return self.head(x.sum(1).mean(1))  # type: ignore[no-any-return]


def test_several_copies_of_the_stream() -> None:
    fast = checked(Copies())
    assert fast.schedule == (3, 3)
    assert not fast.report.unmerges


class Positional(nn.Module):
    """A convolution over the tokens as their position, on either side of its add."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first, self.stem, self.head = first, nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.conv = nn.ModuleList(nn.Conv2d(C, C, 3, 1, 1, groups=C) for _ in range(2))
        self.attention = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for conv, attention in zip(self.conv, self.attention, strict=True):
            grid = x.transpose(1, 2).unflatten(2, (GRID, GRID))
            place = conv(grid).flatten(2).transpose(1, 2)
            x = place + x if self.first else x + place
            x = x + attention(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_a_convolution_that_keeps_the_grid_keeps_its_tokens() -> None:
    reports = [checked(Positional(first)).report for first in (True, False)]
    assert [report.schedule for report in reports] == [(3, 3), (3, 3)]
    assert reports[0].flop_ratio == reports[1].flop_ratio
    assert {u.reason for u in reports[0].unmerges if u.kind == "unmerge"} == {
        "it works on the grid"
    }


class Convolved(nn.Module):
    """Queries, keys and values by convolutions over the grid, behind an op that pads or not."""

    def __init__(self, pad: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        qkv = [nn.Conv2d(C, 3 * C, 3, 1, 0 if pad else 1) for _ in range(2)]
        self.qkv = nn.ModuleList(nn.Sequential(pad(), conv) if pad else conv for conv in qkv)
        self.mlp = nn.ModuleList(mlp() for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        for qkv, body in zip(self.qkv, self.mlp, strict=True):
            mixed = qkv(x.transpose(1, 2).unflatten(2, (GRID, GRID))).flatten(2).transpose(1, 2)
            x = x + F.scaled_dot_product_attention(*mixed.chunk(3, -1))
            x = x + body(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_keys_made_by_a_convolution_are_the_tokens_keys() -> None:
    fast = checked(Convolved())
    assert fast.schedule == (3, 3)
    assert [block.kind for block in fast.report.blocks] == ["sdpa", "sdpa"]


class Picked(nn.Module):
    """Some tokens by an index that is an input: a context encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.attention = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, image: Tensor, index: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.gather(x, 1, index[..., None].expand(-1, -1, C))
        for attention in self.attention:
            x = x + attention(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_tokens_picked_by_an_index_of_the_image() -> None:
    index = torch.stack([torch.arange(12), torch.arange(12) + 4])
    fast = checked(Picked(), index)
    assert fast.schedule == (3, 3)
    model, x = Picked().double().eval(), torch.randn(3, 3, 2 * GRID, 2 * GRID).double()
    fast = tome_fx.transform(model, 3, example_inputs=(x[:2], index))
    more = torch.cat([index, index[:1] + 1])
    assert distance(run_on(fast, x, more)[:2], run_on(fast, x[:2], index)) < 1e-12


@torch.no_grad()
def run_on(model: nn.Module, *inputs: Tensor) -> Tensor:
    result: Tensor = model(*inputs)
    return result


class Loss(nn.Module):
    """A loss over all tokens against the image's own pixels, returned with what it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, C, 2, 2), Attention()
        self.pixels = nn.Linear(C, 12)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = x + self.attention(x)
        found = self.pixels(x)
        target = F.unfold(image, 2, stride=2).transpose(1, 2)
        return (found - target).square().mean(-1).mean(1), found


@pytest.mark.parametrize("remerge", ["mean", "never"])
def test_a_loss_is_the_loss_of_what_is_returned(remerge: Any) -> None:
    model, x = Loss(), torch.randn(2, 3, 2 * GRID, 2 * GRID).double()
    randomise(model)
    model.double().eval()
    fast = tome_fx.transform(model, 5, example_inputs=x, remerge=remerge)
    with torch.no_grad():
        loss, found = fast(x)
    target = F.unfold(x, 2, stride=2).transpose(1, 2)
    torch.testing.assert_close(loss, (found - target).square().mean(-1).mean(1))
    assert distance(found, run(lambda image: model(image)[1], x)) > 1e-6  # type: ignore[arg-type]


def test_a_residual_of_other_tokens_is_called_that() -> None:
    """Windows over padded grids, as in Twins: the add is of the tokens of all of them."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, C, 2, 2)
            self.whole, self.inside = Attention(), Attention()

        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image)
            x = x + self.whole(x.flatten(2).mT).mT.view_as(x)
            grid = F.pad(x, (0, 2, 0, 2)).unflatten(3, (2, 3)).unflatten(2, (2, 3))
            rows = grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, C)
            rows = self.inside(rows).view(-1, 2, 2, 3, 3, C).permute(0, 5, 1, 3, 2, 4)
            return x + rows.reshape(-1, C, 6, 6)[..., :GRID, :GRID]

    fast = tome_fx.transform(Windows(), 3, example_inputs=torch.randn(2, 3, 8, 8), min_ratio=0)
    assert fast.schedule == (3,)
    assert [miss.reason.split(",")[0] for miss in fast.report.near_misses] == [
        "the residual add behind it is of other tokens"
    ]


class Carrying(nn.Module):
    """Weights are mixed with those of the block before, which are no residual of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(6, C), nn.ModuleList(nn.Linear(C, 3 * C) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        x, before = self.stem(x), None
        for block in self.blocks:
            q, k, v = block(x).chunk(3, -1)
            weights = (q @ k.mT).softmax(-1)
            before = weights if before is None else 0.6 * weights + 0.4 * before
            x = x + before @ v
            x = x + x.relu()
        return x.mean(1)


def test_weights_that_are_carried_on_are_no_residual() -> None:
    model = Carrying().double().eval()
    x = torch.randn(3, 8, 6, dtype=torch.float64)[:, [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 7]]
    for schedule in ([4, 0], [0, 4]):
        fast = tome_fx.transform(model, schedule, example_inputs=x)
        assert distance(run(fast, x), run(model, x)) < 1e-12
