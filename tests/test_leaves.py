"""Modules that cannot be captured stay calls, and what stands around them merges."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.compilers import COMPILERS
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
N, C, HEADS = 16, 8, 2


class Resized(nn.Module):
    """Patches with a table of positions that is resized to each image's own rows and columns."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, self.table = nn.Linear(6, C), nn.Parameter(torch.zeros(1, C, 4, 4))
        self.register_buffer("scale", torch.ones(1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sizes: Tensor, factor: float = 1.0) -> Tensor:
        rows = []
        for height, width in sizes.tolist():
            table = F.interpolate(self.table, (height, width), mode="bilinear").flatten(2).mT
            rows.append(F.pad(table, (0, 0, 0, x.shape[1] - height * width)))
        return self.dropout(self.stem(x) + factor * self.scale * torch.cat(rows))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, C))
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Sized(nn.Module):
    """A Transformer on images of several sizes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = Resized(dropout)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(C, 5)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        x = self.embed(x, sizes, factor=0.5)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def inputs(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, N, 6, dtype=torch.float64, generator=generator)
    return x, torch.tensor([[4, 4], [2, 7], [5, 3], [8, 2], [3, 3]])[:batch]


def model(dropout: float = 0.0) -> Sized:
    made = Sized(dropout).double().eval()
    randomise(made, 3)
    return made


def transformed(source: nn.Module, r: int = 3) -> tome_fx.ToMeModule:
    return tome_fx.transform(source, r, example_inputs=inputs())


@torch.no_grad()
def test_without_merging_it_is_the_model_for_other_sizes_and_batches() -> None:
    source = model()
    fast = transformed(source, 0)
    for batch in (1, 2, 5):
        given = inputs(batch, batch)
        assert torch.equal(fast(*given), source(*given))


@torch.no_grad()
def test_equal_tokens_merge_exactly() -> None:
    source = model()
    source.embed.table.copy_(source.embed.table[..., :1, :1].expand(1, C, 4, 4))
    fast = transformed(source)
    assert fast.schedule == (3, 3, 3)
    x, sizes = inputs(1)
    repeated = x[:, torch.arange(N) % 5]
    assert distance(fast(repeated, sizes), source(repeated, sizes)) < 1e-12
    assert distance(fast(x, sizes), source(x, sizes)) > 1e-6


@torch.no_grad()
def test_each_image_is_by_itself() -> None:
    fast = transformed(model())
    x, sizes = inputs(5)
    whole = fast(x, sizes)
    for i in range(5):
        assert distance(fast(x[i : i + 1], sizes[i : i + 1]), whole[i : i + 1]) < 1e-12


def test_the_report_names_it() -> None:
    report = transformed(model()).report
    (note,) = [note for note in report.notes if "stays a call" in note]
    assert note.startswith("embed stays a call")
    assert "protect=" in note
    assert "sizes.tolist()" in note
    before = sum(block.macs_before for block in report.blocks)
    assert report.macs_before == before + N * 6 * C + C * 5


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_it_is_one_graph(compiler: str) -> None:
    fast = transformed(model())
    compiled = torch.compile(fast, backend=compiler, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        given = inputs(batch, batch)
        assert distance(compiled(*given), fast(*given)) < 1e-12


# Dynamo asks each value at a graph break for its .grad.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_gradients_reach_its_weights_compiled_too() -> None:
    source = model()
    fast = transformed(source, 0)
    given = inputs()
    wanted = torch.autograd.grad(source(*given).square().sum(), list(source.parameters()))
    for module in (fast, torch.compile(fast, backend="aot_eager")):
        found = torch.autograd.grad(module(*given).square().sum(), list(fast.parameters()))
        assert all(distance(a, b) < 1e-12 for a, b in zip(found, wanted, strict=True))


def test_it_has_the_mode_of_the_program() -> None:
    source = model(dropout=0.5)
    fast = transformed(source)
    given = inputs()
    assert torch.equal(fast(*given), fast(*given))
    fast.train()
    assert not torch.equal(fast(*given), fast(*given))
    assert not source.training
    fast.eval()
    assert torch.equal(fast(*given), fast(*given))


@torch.no_grad()
def test_weights_are_shared_by_name_and_have_one_place() -> None:
    source = model()
    fast = transformed(source)
    assert set(fast.state_dict()) == set(source.state_dict())
    assert fast.embed.table is source.embed.table
    before = fast(*inputs())
    source.embed.table.mul_(3)
    after = fast(*inputs())
    assert distance(before, after) > 1e-6
    assert distance(transformed(source)(*inputs()), after) == 0
    assert "forward" not in vars(source.embed)


@torch.no_grad()
def test_copies_casts_and_pickles() -> None:
    fast = transformed(model())
    x, sizes = inputs()
    wanted = fast(x, sizes)
    own = copy.deepcopy(fast)
    for twin in (own, copy.copy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(twin(x, sizes), wanted)
    own.embed.table.zero_()
    assert torch.equal(fast(x, sizes), wanted)
    assert own.float()(x.float(), sizes).dtype is torch.float32
    assert fast.token_map(x, sizes).shape == (3, 2, N)


@torch.no_grad()
def test_threads_do_not_meet_in_it() -> None:
    fast = transformed(model())
    given = [inputs(1 + i % 4, i) for i in range(48)]
    wanted = [fast(*each) for each in given]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: fast(*each), given))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


class Branching(nn.Module):
    """A step between blocks that looks at the values of its image."""

    def __init__(self, channels: int = C) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(channels, channels) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, None, str]:
        rows = [self.steps[int(row.mean() > 0)](row) for row in x]
        return torch.stack(rows), None, "kept"


class Between(nn.Module):
    def __init__(self, step: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, C, 2, 2), nn.Linear(C, 5)
        self.first, self.step, self.last = Block(), step or Branching(), Block()

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(self.stem(image).flatten(2).transpose(1, 2))
        x = x + self.step(x)[0] + self.step(-x)[0]  # twice, with other values
        return self.head(self.last(x).mean(1))  # type: ignore[no-any-return]


@torch.no_grad()
def test_between_blocks_it_gets_all_tokens() -> None:
    source = Between().double().eval()
    randomise(source, 5)
    image = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    fast = tome_fx.transform(source, 3, example_inputs=image)
    assert fast.schedule == (3, 3)
    assert sum("step stays a call" in note for note in fast.report.notes) == 1
    assert "the call of step" in [unmerge.op for unmerge in fast.report.unmerges]
    tiles = image[:, :, :2, :2].repeat(1, 1, 4, 4)
    assert distance(fast(tiles), source(tiles)) < 1e-12
    assert distance(fast(image), source(image)) > 1e-6
    fast.r = 0
    assert torch.equal(fast(image), source(image))


class Counting(nn.Module):
    """As many tokens as the values say."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        keep = 16 if float(x.detach().sum()) > 0 else 8
        return (x[:, :keep],)


@torch.no_grad()
def test_other_shapes_than_captured_are_an_error() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.stem, self.block = Counting(), nn.Linear(6, C), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.stem(self.cut(x)[0])).mean(1)  # type: ignore[no-any-return]

    source = Cut().eval()
    x = torch.rand(2, N, 6)
    fast = tome_fx.transform(source, 3, example_inputs=x)
    assert fast(x).shape == source(x).shape
    with pytest.raises(tome_fx.InputError, match=r"cut made \[2, 8, 6\].*\[2, 16, 6\].*Transform"):
        fast(-x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if float(x.detach().sum()) > 0 else x  # type: ignore[no-any-return]


def test_where_nothing_is_left_the_first_reason_is_told() -> None:
    with pytest.raises(tome_fx.CaptureError, match=r"float\(x.detach\(\).sum\(\)\)") as raised:
        tome_fx.transform(nn.Sequential(Inner()).eval(), 3, example_inputs=torch.rand(2, N, C))
    assert raised.value.module == "0"
    with pytest.raises(tome_fx.CaptureError, match=r"float\(x.detach\(\).sum\(\)\)"):
        tome_fx.transform(Inner().eval(), 3, example_inputs=torch.rand(2, N, C))


class Numbers(nn.Module):
    """It is told the batch as a number."""

    def forward(self, x: Tensor, batch: Any) -> tuple[Tensor]:
        assert float(x.detach().abs().sum()) >= 0
        return (x.reshape(batch, N, C),)


def test_numbers_that_follow_the_batch_cannot_come_in() -> None:
    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.block = Numbers(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.step(x, x.shape[0])[0]).mean(1)  # type: ignore[no-any-return]

    with pytest.raises(tome_fx.CaptureError, match="abs"):
        tome_fx.transform(Asked().eval(), 3, example_inputs=torch.rand(2, N, C))
