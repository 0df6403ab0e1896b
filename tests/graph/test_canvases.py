"""Rows that are written piece by piece, and what is cut out of them in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tests.profiles import examples
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.canvases import join_pieces
from tome_fx.passes.normalize import normalize

SHAPE = (3, 5, 4)
# What happens to a row: an axis, its places or one of them, and what is done with them.
Step = tuple[int, slice | int, str]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    dim = draw(st.integers(0, 2))
    place = st.integers(-SHAPE[dim], SHAPE[dim] - 1)
    if draw(st.booleans()):
        return dim, draw(place), draw(st.sampled_from(HOW))
    step = draw(st.sampled_from([1, 1, 1, 2]))
    ends = st.none() | st.integers(-7, 7)
    return dim, slice(draw(ends), draw(ends), step), draw(st.sampled_from(HOW))


HOW = ("add", "fill", "cut", "copy", "swap", "keep")


def run(x: Tensor, program: list[Step]) -> list[Tensor]:
    row, kept = x * 2, []
    for number, (dim, places, how) in enumerate(program):
        key = (*(slice(None),) * dim, places)
        if how == "add":
            row[key] += number + row.sum()
        elif how == "fill":
            row[key] = number
        elif how == "cut":
            kept.append(row[key] * 3)
        elif how == "copy":
            row = row.clone()
        elif how == "swap":
            row[key] = row.flip(dim)[key]
        else:
            kept.append(row + 1)
    return [*kept, row]


def written(function: Callable[[Tensor], list[Tensor]], x: Tensor) -> GraphModule:
    """The program of ``function``, without writes in place."""
    functional = torch.func.functionalize(function, remove="mutations")
    return make_fx(functional, tracing_mode="fake")(x)


@examples(120)
@given(st.lists(steps(), min_size=1, max_size=6))
def test_pieces_are_what_was_written(program: list[Step]) -> None:
    x = torch.arange(60, dtype=torch.float64).view(SHAPE)
    made = written(lambda x: run(x, program), x)
    join_pieces(made.graph)
    made.graph.lint()
    made.recompile()
    for left, right in zip(made(x), run(x, program), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def by_pieces(x: Tensor) -> list[Tensor]:
    row = x * 2
    row[:, 0] += 1
    row[:, 2:2] = 0
    row[:, 1:] += 2
    return [row]


def by_parts(x: Tensor) -> list[Tensor]:
    row = torch.slice_scatter(x, x[:, :3] + 2, 1, 0, 3)
    return [torch.slice_scatter(row, row[:, 3:] + 3, 1, 3)]


def overwritten(x: Tensor) -> list[Tensor]:
    row = torch.zeros_like(x)
    row[:, :4] = x[:, 1:].sin()
    row[:, 2:] = x[:, 2:]
    row[:, 0] = x[:, 0].cos()
    return [row]


@pytest.mark.parametrize(("function", "lengths"), [(by_pieces, [1, 4]), (overwritten, [1, 1, 3])])
def test_nothing_is_copied_to_be_written_over(
    function: Callable[[Tensor], list[Tensor]], lengths: list[int]
) -> None:
    """``x[i] += y`` writes what is there already, and Python has no way to say so."""
    graph = normalize(written(function, torch.arange(60, dtype=torch.float64).view(SHAPE)).graph)
    row = next(iter(graph.find_nodes(op="output"))).args[0][0]
    assert bind(row).name == "aten.cat"
    assert [piece.meta["val"].shape[1] for piece in row.args[0]] == lengths
    assert not any(calls(node, ("aten.clone", "aten.zeros_like")) for node in graph.nodes)


def test_parts_of_several_places_stay_written() -> None:
    graph = normalize(written(by_parts, torch.arange(60, dtype=torch.float64).view(SHAPE)).graph)
    assert sum(calls(node, ("aten.slice_scatter",)) for node in graph.nodes) == 2
    assert not any(calls(node, ("aten.cat", "aten.clone")) for node in graph.nodes)
