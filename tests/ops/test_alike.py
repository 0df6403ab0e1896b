"""Pieces of a row matched at once: as each by itself."""

from __future__ import annotations

from itertools import accumulate

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.profiles import examples
from tome_fx import ops


@examples(40)
@given(
    st.lists(st.sampled_from([(1, 0), (4, 1), (6, 2), (6, 3)]), min_size=2, max_size=7),
    st.integers(1, 2),
    st.integers(0, 1),
)
def test_a_plan_of_alike_pieces(pieces: list[tuple[int, int]], batch: int, seed: int) -> None:
    """``(n, r)`` for each piece; those of one token stay."""
    torch.manual_seed(seed)
    before, after = [n for n, _ in pieces], [n - r for n, r in pieces]
    starts = list(accumulate(before, initial=0))
    keys = torch.randn(batch, 2, starts[-1], 5, dtype=torch.float64)
    alone: list[ops.MergePlan | int] = []
    for (n, r), start in zip(pieces, starts, strict=False):
        metric = ops.head_mean(keys[:, :, start : start + n])
        alone.append(ops.match(ops.similarity(metric), r) if r else n)
    kinds = list(dict.fromkeys(piece for piece in pieces if piece[1]))
    if not kinds:
        return
    places = [[i for i, piece in enumerate(pieces) if piece == kind] for kind in kinds]
    plans = []
    for (n, r), own in zip(kinds, places, strict=True):
        cut = ops.stretches(keys, [starts[place] for place in own], n)
        assert cut.shape == (batch * len(own), 2, n, 5)
        plan = ops.match(ops.similarity(ops.head_mean(cut)), r)
        plans.append(plan)
        for which, place in enumerate(own):
            for one, two in zip(ops.own_plan(plan, which, len(own)), alone[place], strict=True):
                assert torch.equal(one, two)
    joined, row = ops.join_alike(plans, places, before, after), ops.join_plans(alone, before, after)
    assert torch.equal(joined.keep, row.keep)
    pairs = [sorted(zip(s, d, strict=True)) for p in (joined, row)
             for s, d in zip(p.src.tolist(), p.dst.tolist(), strict=True)]  # fmt: skip
    assert pairs[:batch] == pairs[batch:]


def test_neighbours_are_a_view() -> None:
    keys = torch.randn(1, 2, 12, 3)
    assert ops.stretches(keys, [0, 4, 8], 4).data_ptr() == keys.data_ptr()
