"""``as_strided`` as reshapes and permutations, or as a choice by an index."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from functorch.einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

import tome_fx
from tests.laws.common import TINY
from tests.profiles import examples
from tests.tiny import images, tiny
from tome_fx.graph.strided import write_strided

aten = torch.ops.aten
Reading = tuple[tuple[int, ...], tuple[int, ...], int]  # sizes, strides, offset


def written(x: Tensor, reading: Reading) -> GraphModule:
    """The program of ``(x + 1).as_strided(..)``, written out."""
    graph = Graph()
    given = graph.placeholder("x")
    moved = graph.call_function(aten.add.Tensor, (given, 1))
    strided = graph.call_function(aten.as_strided.default, (moved, *reading))
    graph.output(strided)
    with FakeTensorMode() as mode:
        given.meta["val"] = mode.from_tensor(x)
        moved.meta["val"] = given.meta["val"] + 1
        strided.meta["val"] = moved.meta["val"].as_strided(*reading)
        write_strided(strided, set(graph.nodes))
    return GraphModule(nn.Module(), graph)


def laid_out(shape: list[int], order: list[int]) -> Tensor:
    """Different numbers in a dense tensor of that shape, whose axes lie in memory in that order."""
    held = torch.arange(prod(shape), dtype=torch.float64).view([shape[dim] for dim in order])
    return held.permute([order.index(dim) for dim in range(len(shape))])


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[Tensor, Reading]:
    """Axes that are split, joined where they lie so, and permuted."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    x = laid_out(shape, draw(st.permutations(range(len(shape)))))
    sizes, left = [], x.numel()
    while left > 1:
        sizes.append(draw(st.sampled_from([n for n in range(2, left + 1) if not left % n])))
        left //= sizes[-1]
    sizes += [1] * draw(st.integers(0, 2))
    steps = [prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    order = draw(st.permutations(range(len(sizes))))
    return x, (tuple(sizes[dim] for dim in order), tuple(steps[dim] for dim in order), 0)


@st.composite
def picked(draw: st.DrawFn) -> tuple[Tensor, Reading]:
    """Any places within memory, also twice: windows that overlap, diagonals."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    x = laid_out(shape, draw(st.permutations(range(len(shape)))))
    start = last = draw(st.integers(0, x.numel() - 1))
    sizes, steps = [], []
    for _ in range(draw(st.integers(0, 3))):
        steps.append(draw(st.integers(0, x.numel())))
        most = min(4, (x.numel() - 1 - last) // steps[-1] + 1) if steps[-1] else 4
        sizes.append(draw(st.integers(1, most)))
        last += (sizes[-1] - 1) * steps[-1]
    return x, (tuple(sizes), tuple(steps), start)


@examples(120)
@given(rearranged() | picked())
def test_it_does_not_depend_on_memory(drawn: tuple[Tensor, Reading]) -> None:
    x, reading = drawn
    program, wanted = written(x, reading), (x + 1).as_strided(*reading)
    for order in (range(x.dim()), reversed(range(x.dim()))):
        other = laid_out(list(x.shape), list(order)).copy_(x)
        assert torch.equal(program(other), wanted)
    assert aten.as_strided.default not in [node.target for node in program.graph.nodes]


@examples(60)
@given(rearranged())
def test_what_is_rearranged_needs_no_index(drawn: tuple[Tensor, Reading]) -> None:
    targets = [node.target for node in written(*drawn).graph.nodes if node.op == "call_function"]
    assert set(targets) <= {aten.add.Tensor, aten.permute.default, aten.reshape.default}


# --- in models -----------------------------------------------------------------------------------


class OnGrid(nn.Module):
    """The patches of a ViT on their grid of 4 x 4, by a function."""

    def __init__(self, grid: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vit = tiny(class_token=False, global_pool="avg", img_size=64, init_values=0.1)
        self.grid, self.head = grid, nn.Conv2d(32, 4, 3, padding=1)
        nn.init.zeros_(self.vit.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        """Scores for each patch."""
        return self.head(self.grid(self.vit.forward_features(x)))  # type: ignore[no-any-return]


def by_functorch(x: Tensor) -> Tensor:
    return rearrange(x, "b (h w) c -> b c h w", h=4)


def transposed_before(x: Tensor) -> Tensor:
    return rearrange(x.transpose(1, 2), "b c (h w) -> b c h w", h=4)


def by_hand(x: Tensor) -> Tensor:
    x = x.contiguous().transpose(1, 2) * 1.0  # as the operand lies
    return x.as_strided((x.shape[0], 32, 4, 4), (x.stride(0), x.stride(1), 4 * 32, 32))


def overlapping(x: Tensor) -> Tensor:
    return x.contiguous().as_strided((x.shape[0], 32, 3, 8), (16 * 32, 1, 4 * 32, 32))


@TINY
@pytest.mark.parametrize("grid", [by_functorch, transposed_before, by_hand, overlapping])
def test_duplicates_merge_without_a_trace(grid: Callable[[Tensor], Tensor]) -> None:
    model, x = OnGrid(grid).double().eval(), images(2, 64).double()
    fast = tome_fx.transform(model, 3, example_inputs=x)
    assert fast.schedule == (3, 3)
    alike = images(3, 64)[..., :1, :1].expand(-1, -1, 64, 64).double().contiguous()
    # (Of tokens that are all alike only the border of the convolution tells the places.)
    torch.testing.assert_close(fast(alike), model(alike), rtol=0, atol=1e-9)
    halves = torch.cat([alike[..., :32], alike.flip(0)[..., 32:]], -1)
    fast.r = [1, 0]
    torch.testing.assert_close(fast(halves), model(halves), rtol=0, atol=1e-9)


@TINY
def test_behind_a_cut_and_a_view() -> None:
    def cut(x: Tensor) -> Tensor:
        x = torch.cat([x[:, :1], x], 1)[:, 1:].view(x.shape[0], 16, 32)
        return x.as_strided((x.shape[0], 32, 4, 4), (17 * 32, 1, 4 * 32, 32), 32)

    model, x = OnGrid(cut).double().eval(), images(2, 64).double()
    fast = tome_fx.transform(model, 3, example_inputs=x)
    alike = images(3, 64)[..., :1, :1].expand(-1, -1, 64, 64).double().contiguous()
    torch.testing.assert_close(fast(alike), model(alike), rtol=0, atol=1e-9)


@TINY
@pytest.mark.parametrize("grid", [by_hand, overlapping])
def test_as_a_backend(grid: Callable[[Tensor], Tensor]) -> None:
    model, x = OnGrid(grid).eval(), images(2, 64)
    options = {"r": 2, "inner_backend": "eager"}
    compiled = torch.compile(model, backend="tome_fx", options=options)
    with torch.no_grad():
        wanted = tome_fx.transform(model, 2, example_inputs=x)(x)
        torch.testing.assert_close(compiled(x), wanted)


def test_what_lies_around_is_refused() -> None:
    def around(x: Tensor) -> Tensor:
        x = x * 1.0
        return x[:, 1:].as_strided((x.shape[0], 32, 3, 5), (32, 1, 32, 32), 7)

    def written_by_memory(x: Tensor) -> Tensor:
        x = x * 1.0
        x.as_strided((x.shape[0], 32), (16 * 32, 1)).zero_()
        return x[..., None].transpose(1, 2)

    for grid in (around, written_by_memory):
        with pytest.raises(
            tome_fx.CaptureError, match=r"depends on how its operand.*test_strided.py:\d+"
        ):
            tome_fx.transform(OnGrid(grid), 3, example_inputs=images(2, 64))
