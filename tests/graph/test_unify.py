"""Two axes that meet: histories decide, and never an extent alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph import drawing
from tests.graph.drawing import BATCH, atom, row, stream
from tests.profiles import examples
from tome_fx.graph.axes import (
    Axis,
    Batch,
    Concat,
    TensorType,
    extensive,
    extent,
    has_batch,
    has_stream,
    intensive,
    is_extensive,
    map_streams,
)
from tome_fx.graph.unify import broadcast, segments, unify, unify_all

axes = st.lists(drawing.factors, min_size=1, max_size=3).map(tuple)
typed_axes = axes.filter(has_stream)


@examples(100)
@given(axes)
def test_an_axis_is_itself(axis: Axis) -> None:
    assert unify(axis, axis) == axis
    assert unify(intensive(axis), extensive(axis)) == intensive(axis)


@examples(100)
@given(typed_axes, st.integers(3, 9))
def test_streams_of_one_extent_stay_different(axis: Axis, shift: int) -> None:
    other = map_streams(axis, lambda s: replace(s, id=s.id + shift))
    deeper = map_streams(axis, lambda s: replace(s, level=s.level + 1))
    assert extent(other) == extent(deeper) == extent(axis)
    assert unify(axis, other) is None
    assert unify(axis, deeper) is None


@examples(100)
@given(typed_axes, drawing.kinds)
def test_a_plain_axis_gives_way_to_a_typed_one(axis: Axis, kind: str) -> None:
    plain: Axis = (atom(extent(axis), "table", kind),)
    assert unify(axis, plain) == axis
    assert unify(plain, axis) == axis


@examples(100)
@given(axes, axes)
def test_the_order_of_operands_does_not_decide_whether(left: Axis, right: Axis) -> None:
    assert (unify(left, right) is None) == (unify(right, left) is None)
    if extent(left) != extent(right):
        assert unify(left, right) is None


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((BATCH,), (Batch(7),)),
        ((stream(7),), (Batch(7),)),
        ((BATCH, atom(2)), (atom(2), BATCH)),
        ((stream(6), atom(2)), (atom(2), stream(6))),
        ((stream(6), atom(2)), (stream(4, 1), atom(3))),
        (row(1, 8), row(2, 7)),
        (row(1, 8), (stream(9),)),
        (row(1, 8), (Concat(((stream(8),), (atom(1),))),)),
        (row(1, 8), (Concat(((atom(1),), (stream(8, 1),))),)),
    ],
    ids=str,
)
def test_two_typed_axes_are_the_same_only_with_the_same_tokens(left: Axis, right: Axis) -> None:
    assert unify(left, right) is None
    assert unify(right, left) is None


def test_plain_pieces_around_a_stream_count_and_are_not_compared_by_name() -> None:
    left: Axis = (Concat(((atom(1, "cls"),), (atom(4, "registers"),), (stream(8),))),)
    right: Axis = (Concat(((atom(5, "prefix", "constant"),), (stream(8),))),)
    assert segments(left) == segments(right)
    assert unify(left, right) == left


@pytest.mark.parametrize(
    ("better", "worse"),
    [("conv", "constant"), ("input", "literal"), ("channel", "constant"), ("conv", "unknown")],
)
def test_a_history_that_says_more_wins(better: str, worse: str) -> None:
    left, right = (atom(6, "a", better),), (atom(6, "b", worse),)
    assert unify(left, right) == unify(right, left) == left


@pytest.mark.parametrize("kind", ["input", "conv"])
def test_a_table_put_together_of_pieces_takes_the_name_of_what_it_indexes(kind: str) -> None:
    image: Axis = (atom(6, "x", kind),)
    table: Axis = (Concat(((atom(2, "a", "literal"),), (atom(4, "b", "constant"),))),)
    assert unify(image, table) == unify(table, image) == image
    row: Axis = (Concat(((atom(2, "a", "constant"),), (atom(4, "y", kind),))),)
    assert unify(row, table) == unify(table, row) == row
    assert unify(image, row) == unify(row, image) == row
    written: Axis = (atom(6, "n", "literal"),)
    assert unify(written, table) == unify(table, written) == table


def test_several_axes() -> None:
    tokens, table = (stream(6),), (atom(6, "table", "constant"),)
    assert unify_all([]) == ()
    assert unify_all([table, tokens, table]) == tokens
    assert unify_all([table, tokens, (stream(6, 1),)]) is None


def test_kinds_are_not_compared() -> None:
    found = unify((stream(6, total=True),), (stream(6),))
    assert found is not None
    assert not is_extensive(found)


def test_broadcast_aligns_at_the_last_axis_and_ones_give_way() -> None:
    tokens = TensorType(((BATCH,), row(1, 8), (atom(4, "width", "channel"),)))
    bias = TensorType(((atom(4, "bias", "constant"),),))
    table = TensorType(((atom(1),), (atom(9, "table", "constant"),), ()))
    assert broadcast([bias, tokens, table]) == tokens
    assert broadcast([]) == TensorType(())


def test_broadcast_of_two_streams_has_no_type() -> None:
    left = TensorType(((BATCH,), (stream(8),)))
    right = TensorType(((BATCH,), (stream(8, 1),)))
    assert broadcast([left, right]) is None
    outer = broadcast([TensorType(((stream(8),), ())), TensorType(((), (stream(8, 1),)))])
    assert outer == TensorType(((stream(8),), (stream(8, 1),)))


@examples(100)
@given(drawing.values(), st.integers(0, 4))
def test_broadcast_with_a_tail_of_itself_changes_nothing(
    axes: tuple[Axis, ...], start: int
) -> None:
    whole = TensorType(axes)
    assert broadcast([whole, TensorType(axes[start:])]) == whole
    assert sum(map(has_batch, axes)) <= 1
