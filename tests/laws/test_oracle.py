"""The reference implementation itself: it is the model at r=0, and it obeys the duplicates law.

These tests do not touch tome_fx. They also show that the law has teeth: with the sizes left out
the reference fails it by far, in every dialect.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import duplicates, oracle, paper
from tests.architectures import Architecture, architectures, schedules
from tests.models import Plain
from tests.plain_drawing import plain_models
from tests.profiles import examples


def gap(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@examples(40)
@given(architectures(max_depth=4), st.data())
@torch.no_grad()
def test_without_merges_it_is_the_model(config: Architecture, data: st.DataObject) -> None:
    model, x = config.build(), config.images()
    expected = model(x)
    assert gap(oracle.reference(model, x, [0] * config.depth), expected) < 1e-12
    schedule = data.draw(schedules(config.depth, config.stream))
    changed = gap(oracle.reference(model, x, schedule), expected)
    if config.reads_last_layer or sum(schedule[:-1]) > 0:
        assert changed > 1e-6
    else:
        assert changed < 1e-12


@examples(40)
@given(architectures(), st.data())
@torch.no_grad()
def test_it_obeys_the_duplicates_law(config: Architecture, data: st.DataObject) -> None:
    layout = data.draw(duplicates.cases(config))
    model = config.build()
    duplicates.tie(model, config, layout.labels)
    x = duplicates.images(config, layout.labels)
    expected, found = model(x), oracle.trace(model, x, layout.schedule)
    assert gap(found.output, expected) < 1e-12
    for slots in (slots for layer in found.maps for slots in layer):
        pairs = set(zip(slots, layout.labels, strict=True))
        assert len(pairs) == len(set(slots))


@examples(40)
@given(architectures(min_depth=2), st.data())
@torch.no_grad()
def test_without_sizes_it_fails_the_law(config: Architecture, data: st.DataObject) -> None:
    layout = data.draw(duplicates.cases(config))
    assume(layout.uneven(config.protected) and sum(layout.schedule[:-1]) > 0)
    model = config.build()
    duplicates.tie(model, config, layout.labels)
    x = duplicates.images(config, layout.labels)
    expected = model(x)
    for left_out in ({"sizes": False}, {"prop_attn": False}):
        assert gap(oracle.reference(model, x, layout.schedule, **left_out), expected) > 1e-6


@pytest.mark.parametrize("pool", ["avg", "avgmax", "map", "prr"])
@torch.no_grad()
def test_a_pool_without_sizes_fails_the_law(pool: str) -> None:
    """The merges are in the last layer, so that only the pool can know of them."""
    config = Architecture(depth=1, pool=pool, grid=(2, 3))
    labels = (0, 0, 1, 2, 3, 4)
    model = config.build()
    duplicates.tie(model, config, labels)
    x = duplicates.images(config, labels)
    assert gap(oracle.reference(model, x, [1]), model(x)) < 1e-12
    assert gap(oracle.reference(model, x, [1], sizes=False), model(x)) > 1e-3


@examples(40)
@given(plain_models(), st.data())
@torch.no_grad()
def test_hand_written_models_keep_duplicates_alike(config: Plain, data: st.DataObject) -> None:
    """What the law stands on: tokens of one class stay equal when tables are tied."""
    layout = data.draw(duplicates.cases(config))
    model = config.build()
    assert bool(model(config.images()).isfinite().all())
    duplicates.tie(model, config, layout.labels)
    out = model(duplicates.images(config, layout.labels))
    if config.readout == "dense":
        patches = out[:, config.front : config.front + config.stream]
        first = [layout.labels.index(label) for label in layout.labels]
        assert torch.allclose(patches, patches[:, first], atol=1e-12, rtol=0)


def test_ties_and_order() -> None:
    """A worked example: a class token at 0, patches at 1 to 6, all alike."""
    pairs, margin = paper.match(torch.ones(7, 7), r=2, protected=1)
    assert (pairs, margin) == ([(2, 1), (4, 1)], 0.0)
    tokens = paper.Tokens(
        torch.arange(7.0)[:, None], [1.0] * 7, [[], [0], [1], [2], [3], [4], [5]], 1
    )
    merged = paper.merge(tokens, pairs, sizes=True)
    assert merged.members == [[], [5], [0, 1, 3], [2], [4]]
    assert merged.size == [1, 1, 3, 1, 1]
    assert merged.x.flatten().tolist() == pytest.approx([0, 6, 7 / 3, 3, 5])
    with_distillation, _ = paper.match(torch.eye(6), r=9, protected=2)
    assert with_distillation == [(2, 3), (4, 3)]


def test_a_zero_vector_is_similar_to_nothing() -> None:
    metric = paper.unit(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
    assert metric.tolist() == [[0.0, 0.0], [0.6, 0.8]]
