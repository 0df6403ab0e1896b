"""`every` and `align`: totals, clamps and multiples hold for any schedule."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tome_fx.grouping import Merge, auto_align, grouped, plain
from tome_fx.schedule import asked, share

WANTED = st.lists(st.integers(0, 40), min_size=1, max_size=14)
EVERY, ALIGN, PROTECTED = st.integers(1, 6), st.integers(1, 17), st.integers(0, 5)


def left(merges: Sequence[Merge]) -> list[int]:
    return [merge.before - merge.removed for merge in merges]


def check_row(merges: Sequence[Merge], tokens: int) -> None:
    """One merge follows the other, and none takes more than half."""
    assert merges[0].before == tokens
    for merge, after in itertools.pairwise(merges):
        assert after.before == merge.before - merge.removed
    assert all(0 <= merge.removed <= merge.before // 2 for merge in merges)


@examples(300)
@given(WANTED, st.integers(0, 300))
def test_one_by_one_is_the_plain_plan(wanted: list[int], tokens: int) -> None:
    ideal = plain(wanted, tokens)
    assert grouped(ideal) == ideal
    assert [merge.asked for merge in ideal] == wanted
    check_row(ideal, tokens)


@examples(400)
@given(WANTED, st.integers(0, 300), EVERY, ALIGN, PROTECTED)
def test_any_plan(wanted: list[int], tokens: int, every: int, align: int, protected: int) -> None:
    ideal = plain(wanted, tokens)
    merges = grouped(ideal, every, align, protected)
    assert len(merges) == len(wanted)
    check_row(merges, tokens)
    for start in range(0, len(merges), every):
        group = merges[start : start + every]
        assert sum(merge.removed > 0 for merge in group) <= 1
        if not any(merge.asked for merge in ideal[start : start + every]):
            assert not any(merge.removed for merge in group)
    for merge in merges:
        least, most = merge.before - merge.before // 2 + protected, merge.before + protected
        reachable = any(count % align == 0 for count in range(least, most + 1))
        if merge.removed and reachable:
            assert (merge.before - merge.removed + protected) % align == 0
    # As many go as were asked to go, within one multiple, but for what half a stream cannot give.
    last = max((i for i, merge in enumerate(ideal) if merge.asked), default=-1)
    if last < 0:
        return
    end = min(last // every * every + every, len(merges)) - 1
    assert left(merges)[end] > left(ideal)[end] - align
    clamped = any(merge.asked > merge.before // 2 for merge in merges)
    if not clamped:
        assert left(merges)[end] < left(ideal)[end] + align


@examples(300)
@given(WANTED, st.integers(0, 300), EVERY)
def test_groups_reach_the_plain_totals(wanted: list[int], tokens: int, every: int) -> None:
    """After each group as many tokens are gone as layer by layer, unless half was not enough."""
    ideal = plain(wanted, tokens)
    merges = grouped(ideal, every)
    if any(merge.asked > merge.before // 2 for merge in merges):
        return
    ends = [*range(every - 1, len(wanted), every), len(wanted) - 1]
    assert [left(merges)[i] for i in ends] == [left(ideal)[i] for i in ends]


@examples(200)
@given(st.floats(0, 0.49), st.integers(2, 300), EVERY)
def test_a_share_compounds_within_its_group(part: float, tokens: int, every: int) -> None:
    ideal = plain([0] * 6, tokens, part)
    merges = grouped(ideal, every)
    if all(merge.asked <= merge.before // 2 for merge in merges):
        assert left(merges)[-1] == left(ideal)[-1]


@pytest.mark.parametrize("r", [8, 13, 16, (13, -1.0), (8, 0.5), 0.08], ids=str)
@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("align", [1, 8])
def test_the_tokens_over_all_layers_stay(r: Any, every: int, align: int) -> None:
    """The cost of linears and MLPs goes with the sum of tokens; it stays within three per cent."""
    ideal = plain(asked(r, 12), 196, share(r))
    sums = [sum(left(merges)) for merges in (ideal, grouped(ideal, every, align, 1))]
    assert abs(sums[1] / sums[0] - 1) < 0.03


def test_three_layers_merge_at_the_middle_one() -> None:
    merges = grouped(plain([16] * 6, 196), 3)
    assert [merge.removed for merge in merges] == [0, 48, 0, 0, 48, 0]


def test_what_half_cannot_give_goes_with_the_next() -> None:
    merges = grouped(plain([4] * 6, 20), 3)  # layer by layer 12, then 7 go
    assert [merge.removed for merge in merges] == [0, 10, 0, 5, 0, 0]
    assert [merge.asked for merge in merges] == [0, 12, 0, 14, 0, 0]


def test_a_few_tokens_wait_until_they_make_a_multiple() -> None:
    merges = grouped(plain([1] * 9, 196), 1, 8, 1)
    assert sum(merge.removed for merge in merges) in (5, 13)
    assert {merge.removed for merge in merges} <= {0, 5, 8, 13}


@pytest.mark.parametrize("r", [0, 0.0, (0, -1.0), [0] * 12], ids=str)
def test_nothing_asked_nothing_removed(r: Any) -> None:
    for every, align in itertools.product((1, 3), (1, 8)):
        merges = grouped(plain(asked(r, 12), 197, share(r)), every, align, 1)
        assert not any(merge.removed for merge in merges)


def test_what_auto_stands_for() -> None:
    assert auto_align("cuda", torch.float16) == auto_align("cuda", torch.bfloat16) == 8
    assert auto_align("cuda", torch.float32) == auto_align("cpu", torch.bfloat16) == 1
