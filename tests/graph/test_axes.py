"""Axes: extents and counts, concatenations, and cuts on their borders."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph import drawing
from tests.graph.drawing import BATCH, PRIME, atom, row, stream
from tests.profiles import examples
from tome_fx.graph import axes as ax
from tome_fx.graph.axes import Axis, Concat, Stream, TensorType, count, extent
from tome_fx.graph.joined import concat
from tome_fx.rules.pieces import cut_axis

axes = st.lists(drawing.factors, min_size=1, max_size=2).map(tuple)
parts = st.lists(axes, min_size=1, max_size=4)


def rows(axis: Axis) -> tuple[Axis, ...]:
    """The pieces of an axis that is a concatenation, or the axis."""
    single = axis[0] if len(axis) == 1 else None
    return single.parts if isinstance(single, Concat) else (axis,)


@examples(100)
@given(parts)
def test_a_concatenation_adds_extents_and_counts(parts: list[Axis]) -> None:
    joined = concat(parts)
    assert extent(joined) == sum(map(extent, parts))
    assert count(joined) == sum(map(count, parts))
    assert [s for part in parts for s in ax.streams_of_axis(part)] == list(
        ax.streams_of_axis(joined)
    )


@examples(100)
@given(parts, st.data())
def test_a_concatenation_of_concatenations_is_one(parts: list[Axis], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(parts)))
    halves = [concat(half) for half in (parts[:at], parts[at:]) if half]
    assert concat(halves) == concat(parts)
    assert not any(isinstance(part[0], Concat) and len(part) == 1 for part in rows(concat(parts)))


def test_pieces_of_no_extent_vanish_and_one_piece_is_itself() -> None:
    tokens: Axis = (stream(8),)
    assert concat([(atom(0),), tokens]) == tokens
    assert concat([tokens]) == tokens
    assert concat([(atom(1),), tokens]) == row(1, 8, "x")
    assert extent(concat([])) == 0


@examples(100)
@given(parts)
def test_cuts_on_borders_give_the_pieces_back(parts: list[Axis]) -> None:
    joined = concat(parts)
    pieces = rows(joined)
    edges = [0, *itertools.accumulate(map(extent, pieces))]
    places = [0, *itertools.accumulate(map(count, pieces))]
    for first, last in itertools.combinations(range(len(edges)), 2):
        found = cut_axis(joined, edges[first], edges[last])
        assert found == (concat(list(pieces[first:last])), places[first])
    for start, end in itertools.pairwise(edges):
        left, right = cut_axis(joined, 0, end), cut_axis(joined, end, edges[-1])
        assert left is not None
        assert right is not None
        assert extent(left[0]) + extent(right[0]) == edges[-1]
        assert start < end


@examples(100)
@given(parts, st.data())
def test_a_cut_through_tokens_has_no_type(parts: list[Axis], data: st.DataObject) -> None:
    joined = concat(parts)
    whole = extent(joined)
    start = data.draw(st.integers(0, whole - 1))
    end = data.draw(st.integers(start + 1, whole))
    found = cut_axis(joined, start, end)
    at = 0
    through = len(joined) > 1 or not isinstance(joined[0], Concat)
    for part in rows(joined):
        stop = at + extent(part)
        touched = max(start, at) < min(end, stop)
        inside = touched and not (start <= at and stop <= end)
        through = through or (inside and ax.has_stream(part))
        at = stop
    if (start, end) == (0, whole):
        assert found == (joined, 0)
    elif through:
        assert found is None
    else:
        assert found is not None
        assert extent(found[0]) == end - start


def test_a_cut_counts_from_the_merged_tokens() -> None:
    tokens = stream(8, level=1, merged=3)
    axis: Axis = (Concat(((atom(1, "cls"),), (tokens,), (atom(4, "end"),))),)
    assert cut_axis(axis, 0, 1) == ((atom(1, "cls"),), 0)
    assert cut_axis(axis, 1, 9) == ((tokens,), 1)
    assert cut_axis(axis, 9, 13) == ((atom(4, "end"),), 6)
    inner = cut_axis(axis, 10, 12)
    assert inner is not None
    assert (extent(inner[0]), inner[1]) == (2, 7)
    assert cut_axis(axis, 1, 8) is None
    assert cut_axis(axis, 2, 9) is None


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 3), (5, 2)])
def test_an_empty_cut_has_no_extent(start: int, end: int) -> None:
    found = cut_axis(row(1, 8), start, end)
    assert found is not None
    assert extent(found[0]) == 0


def test_equal_stretches_of_one_piece_are_equal_axes() -> None:
    axis: Axis = (Concat(((atom(4, "prefix"),), (stream(8),))),)
    assert cut_axis(axis, 1, 3) == cut_axis(axis, 1, 3)
    assert cut_axis(axis, 0, 2) != cut_axis(axis, 2, 4)


def test_the_batch_and_rows_of_a_product_are_never_cut() -> None:
    assert cut_axis((BATCH,), 0, 1) is None
    assert cut_axis((stream(8), atom(3)), 0, 12) is None
    assert cut_axis((atom(3), stream(8)), 0, 12) is None
    assert cut_axis((atom(3), stream(8)), 8, 16) == ((stream(8),), 8)  # a whole row of a product
    assert cut_axis((Concat(((atom(1),), (BATCH,))),), 1, 3) is None


def test_counts_differ_from_extents_where_a_stream_has_merged() -> None:
    axis: Axis = (BATCH, *row(1, 8, level=1, merged=3))
    assert extent(axis) == PRIME * 9
    assert count(axis) == PRIME * 6
    assert ax.is_merged(TensorType((axis,)))
    assert not ax.is_merged(TensorType((row(1, 8),)))


@examples(100)
@given(axes)
def test_kinds_change_streams_only(axis: Axis) -> None:
    total, member = ax.extensive(axis), ax.intensive(axis)
    assert ax.is_extensive(total) == ax.has_stream(axis)
    assert not ax.is_extensive(member)
    assert ax.intensive(total) == member
    assert (extent(total), count(total)) == (extent(axis), count(axis))
    assert ax.map_streams(axis, lambda s: s) == axis


def test_the_factor_with_the_tokens() -> None:
    tokens = stream(8)
    assert ax.token_factor((BATCH, tokens)) == tokens
    assert ax.token_factor(row(1, 8)) == row(1, 8)[0]
    assert ax.token_factor((tokens, stream(4, 1))) is None
    assert ax.token_factor((atom(3),)) is None
    assert ax.pieces(tokens) == ((tokens,),)
    assert len(ax.pieces(row(1, 8)[0])) == 2


def test_the_axis_of_the_batch() -> None:
    assert ax.batch_axis(TensorType((row(1, 8), (BATCH, atom(2))))) == 1
    assert ax.batch_axis(TensorType((row(1, 8),))) is None
    assert ax.has_batch((atom(2), BATCH))


def test_types_print() -> None:
    tokens = Stream(0, 8, 1, 3, True)
    shown = TensorType(((BATCH, atom(2)), (Concat(((atom(1),), (tokens,))),), ()))
    assert str(shown) == "[B*2, [1|S0.1:5+], 1]"
    assert list(shown.streams) == [tokens]
