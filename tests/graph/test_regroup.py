"""Reshape on types: order is kept, plain factors split, the batch and streams never do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph import drawing
from tests.graph.drawing import BATCH, PRIME, atom, row, stream
from tests.profiles import examples
from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Factor,
    TensorType,
    extent,
    has_batch,
    has_stream,
    lifted_shape,
)
from tome_fx.graph.grids import fused, is_whole
from tome_fx.graph.regroup import factor_kind, regroup


def flat(axes: tuple[Axis, ...]) -> list[Factor]:
    return [factor for axis in axes for factor in axis]


def typed(axes: tuple[Axis, ...]) -> list[Factor]:
    return [factor for factor in flat(axes) if has_stream((factor,)) or has_batch((factor,))]


@examples(100)
@given(st.data())
def test_factors_that_are_dealt_anew_keep_their_order_and_names(data: st.DataObject) -> None:
    axes = data.draw(drawing.values())
    other = data.draw(drawing.groupings(flat(axes)))
    assert regroup(axes, [extent(axis) for axis in other], "reshape") == other


@examples(100)
@given(st.data())
def test_any_shape_gives_its_extents_and_whole_tokens_or_nothing(data: st.DataObject) -> None:
    axes = data.draw(drawing.values())
    shape = data.draw(drawing.factorings(math.prod(map(extent, axes))))
    result = regroup(axes, shape, "reshape")
    if result is None:
        return
    assert [extent(axis) for axis in result] == shape
    assert is_whole(TensorType(result))
    rows = fused(TensorType(result)).axes
    assert typed(rows) == typed(axes)
    old = set(flat(axes))
    for factor in flat(rows):
        if factor not in old:
            assert isinstance(factor, Atom)
            assert factor.origin.node == "reshape"


@examples(100)
@given(st.data())
def test_a_reshape_and_back_gives_the_same_axes_where_nothing_split(data: st.DataObject) -> None:
    axes = data.draw(drawing.values())
    shape = data.draw(drawing.factorings(math.prod(map(extent, axes))))
    there = regroup(axes, shape, "reshape")
    if there is None or set(flat(there)) != set(flat(axes)):
        return
    assert regroup(there, [extent(axis) for axis in axes], "back") == axes


def test_a_plain_factor_splits_and_its_pieces_keep_its_kind() -> None:
    result = regroup(((BATCH,), (atom(24, "qkv", "channel"),)), [PRIME, 3, 2, 4], "reshape")
    assert result is not None
    assert result[0] == (BATCH,)
    pieces = flat(result[1:])
    assert [extent((p,)) for p in pieces] == [3, 2, 4]
    assert {factor_kind(p) for p in pieces} == {"channel"}
    assert len(set(pieces)) == 3


def test_pieces_of_two_reshapes_are_different() -> None:
    axes = ((atom(4),),)
    assert regroup(axes, [2, 2], "one") != regroup(axes, [2, 2], "two")
    first = regroup(axes, [2, 2], "one")
    assert first is not None
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (((stream(12),), (atom(2),)), [3, 8]),
        (((BATCH,), (atom(2),), (stream(12),)), [PRIME * 6, 4]),
        (((BATCH, atom(2)),), [2, PRIME]),
        (row(1, 11), [5, 3]),
        (((atom(4),), (atom(6),)), [6, 4]),
        (((atom(2),), (stream(6),)), [6, 2]),
    ],
    ids=str,
)
def test_what_would_cut_tokens_or_reorder_factors_has_no_type(
    axes: tuple[Axis, ...], shape: list[int]
) -> None:
    axes = axes if isinstance(axes[0], tuple) else (axes,)
    assert regroup(axes, shape, "reshape") is None


def test_tokens_are_dealt_out_to_windows_in_the_batch() -> None:
    windows = regroup(((BATCH,), (stream(12),), (atom(2),)), [PRIME * 3, 4, 2], "reshape")
    assert windows is not None
    assert [extent(axis) for axis in windows] == [PRIME * 3, 4, 2]
    assert windows[0][0] == BATCH
    assert is_whole(TensorType(windows))
    assert fused(TensorType(windows)).axes == ((BATCH, stream(12)), (), (atom(2),))
    assert regroup(windows, [PRIME, 12, 2], "back") == ((BATCH,), (stream(12),), (atom(2),))


def test_tokens_fold_into_the_batch_whole() -> None:
    axes: tuple[Axis, ...] = ((BATCH,), row(1, 11), (atom(8),))
    folded = regroup(axes, [PRIME * 12, 8], "reshape")
    assert folded == ((BATCH, *row(1, 11)), (atom(8),))


def test_batch_and_heads_differ_by_order() -> None:
    heads = atom(3, "heads")
    left = regroup(((BATCH,), (heads,)), [PRIME * 3], "reshape")
    right = regroup(((heads,), (BATCH,)), [PRIME * 3], "reshape")
    assert left == ((BATCH, heads),)
    assert right == ((heads, BATCH),)
    assert regroup(right, [PRIME, 3], "back") is None
    assert regroup(left, [PRIME, 3], "back") == ((BATCH,), (heads,))


def test_axes_of_one_come_and_go() -> None:
    axes: tuple[Axis, ...] = ((BATCH,), (atom(1),), (), (stream(7),))
    assert regroup(axes, [1, PRIME, 7, 1], "reshape") == ((), (BATCH,), (stream(7),), ())


def test_tokens_are_dealt_out_to_a_grid_and_back() -> None:
    axes: tuple[Axis, ...] = ((BATCH,), (stream(12),), (atom(8),))
    grid = regroup(axes, [PRIME, 3, 4, 8], "reshape")
    assert grid is not None
    assert [extent(axis) for axis in grid] == [PRIME, 3, 4, 8]
    assert is_whole(TensorType(grid))
    assert fused(TensorType(grid)).axes == ((BATCH,), (stream(12),), (), (atom(8),))
    assert regroup(grid, [PRIME, 12, 2, 4], "back")[:2] == axes[:2]
    assert not is_whole(TensorType((grid[0], grid[2], grid[1], grid[3])))
    assert not is_whole(TensorType((grid[0], grid[1], grid[3])))


def test_a_grid_may_have_axes_of_one_between() -> None:
    """A window that is the whole grid: ``[b, 1, h, 1, w, c]``."""
    axes: tuple[Axis, ...] = ((BATCH,), (stream(12),), (atom(8),))
    window = regroup(axes, [PRIME, 1, 3, 1, 4, 8], "reshape")
    grid = regroup(axes, [PRIME, 3, 4, 8], "reshape")
    assert window is not None
    assert grid is not None
    assert window == (grid[0], (), grid[1], (), grid[2], grid[3])
    assert is_whole(TensorType(window))
    turned = TensorType(tuple(window[i] for i in (0, 1, 3, 2, 4, 5)))
    assert is_whole(turned)
    assert regroup(turned.axes, [PRIME, 3, 4, 8], "back") == grid
    assert not is_whole(TensorType(tuple(window[i] for i in (0, 1, 4, 3, 2, 5))))
    assert not is_whole(TensorType((grid[0], grid[1], (atom(5),), grid[2])))
    assert regroup(axes, [PRIME, 3, 1, 2, 2, 8], "reshape") is not None


def test_merged_tokens_of_a_grid_stand_on_its_first_axis() -> None:
    grid = regroup(((BATCH,), (stream(12, level=2, merged=5),)), [PRIME, 3, 4], "reshape")
    assert grid is not None
    assert lifted_shape(TensorType(grid)) == [-1, 7, 1]
    apart = regroup(grid, [PRIME, 1, 3, 1, 4], "reshape")
    assert apart is not None
    assert lifted_shape(TensorType(apart)) == [-1, 1, 7, 1, 1]


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (((atom(0),), (atom(4),)), [0, 4]),
        (((atom(0),),), [0]),
        (((atom(4),),), [0, 4]),
    ],
)
def test_empty_values_have_no_type(axes: tuple[Axis, ...], shape: list[int]) -> None:
    assert regroup(axes, shape, "reshape") is None


@pytest.mark.parametrize("shape", [[3], [3, 5], [], [8, 8]])
def test_another_number_of_elements_has_no_type(shape: list[int]) -> None:
    assert regroup(((atom(4), stream(4)),), shape, "reshape") is None


def test_a_stream_of_one_token_has_no_place_of_its_own() -> None:
    """It is never dropped: either it lies where a size still asks for more, or there is no type."""
    one = stream(1)
    assert regroup(((BATCH,), (one,), (atom(4),)), [PRIME * 4], "reshape") == (
        (BATCH, one, atom(4)),
    )
    assert regroup(((BATCH,), (one,)), [PRIME, 1], "reshape") is None


def test_a_plain_concatenation_splits_like_a_number() -> None:
    whole = Concat(((atom(2, kind="conv"),), (atom(4, kind="conv"),)))
    mixed = Concat(((atom(2, kind="conv"),), (atom(4, kind="input"),)))
    result = regroup(((whole,),), [3, 2], "reshape")
    assert result is not None
    assert [factor_kind(factor) for factor in flat(result)] == ["conv", "conv"]
    assert factor_kind(mixed) == "unknown"
