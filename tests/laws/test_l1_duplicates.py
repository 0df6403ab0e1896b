"""L1: merging exact duplicates changes nothing.

This law needs no reference: the model itself says what is right. It catches a log size that is
missing, a size that got lost, a pool that forgets the weights. With the sizes left out
(``prop_attn=False``) it must fail by far; `tests.laws.test_oracle` shows the same for pools.
"""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import duplicates
from tests.architectures import Architecture, architectures
from tests.laws.common import (
    TINY,
    Subject,
    assert_differs,
    assert_merged,
    distance,
    groups_are_alike,
    run,
    subjects,
    tolerance,
    transform,
)
from tests.plain_drawing import NO_LOGITS, plain_models
from tests.profiles import examples

pytestmark = TINY


def check(config: Subject, layout: duplicates.Layout, dtype: torch.dtype = torch.float64) -> None:
    """Hold the law on one model, one layout of duplicates and two batches."""
    model = config.build(dtype)
    duplicates.tie(model, config, layout.labels)
    x = duplicates.images(config, layout.labels).to(dtype)
    fast = transform(model, x, list(layout.schedule))
    assert_merged(fast, layout.schedule, config)
    for seed in (0, 1):
        x = duplicates.images(config, layout.labels, seed).to(dtype)
        if len(set(layout.labels)) > 1:
            assert groups_are_alike(fast, x, layout.labels)
        assert distance(run(fast, x), run(model, x)) < tolerance(dtype)
    assert_differs(fast, model, config.images(dtype), config)


@examples(8)
@given(architectures(attention=("attn", "attn", "attn", "diff")), st.data())
def test_duplicates_merge_without_a_trace(config: Architecture, data: st.DataObject) -> None:
    check(config, data.draw(duplicates.cases(config)))


@examples(8)
@given(plain_models(), st.data())
def test_duplicates_merge_in_hand_written_models(config: Subject, data: st.DataObject) -> None:
    check(config, data.draw(duplicates.cases(config)))


@examples(6)
@given(subjects(), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_duplicates_in_narrow_dtypes(
    config: Subject, dtype: torch.dtype, data: st.DataObject
) -> None:
    # All patches alike: with classes, rounding could make an unequal pair look more similar.
    labels = (0,) * config.stream
    r = data.draw(st.integers(1, config.stream // 2))
    schedule, left = [], config.stream
    for _ in range(config.depth):
        schedule.append(min(r, left // 2))
        left -= schedule[-1]
    layout = duplicates.Layout(labels, tuple(schedule))
    check(config, layout, dtype)


@examples(6)
@given(subjects(min_depth=2), st.data())
def test_without_sizes_the_law_fails(config: Subject, data: st.DataObject) -> None:
    layout = data.draw(duplicates.cases(config))
    assume(layout.uneven(config.protected) and sum(layout.schedule[:-1]) > 0)
    # `prop_attn` is about softmaxes over tokens; sums over tokens always count every member.
    assume(getattr(config, "kernel", "") not in NO_LOGITS)
    model = config.build()
    duplicates.tie(model, config, layout.labels)
    x = duplicates.images(config, layout.labels)
    fast = transform(model, x, list(layout.schedule), prop_attn=False)
    assert distance(run(fast, x), run(model, x)) > 1e-6
