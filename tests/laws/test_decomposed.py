"""A program in core ATen, as exporters to other runtimes make it, merges as its model does."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given

import tome_fx
from tests.laws.common import (
    TINY,
    Subject,
    assert_merged,
    distance,
    run,
    subjects_with_schedule,
    transform,
)
from tests.profiles import examples

pytestmark = TINY
BATCH = ({0: torch.export.Dim("batch", min=2, max=64)},)


@examples(6)
@given(subjects_with_schedule())
def test_a_decomposed_program_merges_as_its_model(drawn: tuple[Subject, list[int]]) -> None:
    config, schedule = drawn
    model, x = config.build(), config.images()
    fast = transform(model, x, schedule, min_ratio=0)
    program = torch.export.export(model, (x,), dynamic_shapes=BATCH).run_decompositions()
    other: Any = tome_fx.transform(program, schedule, min_ratio=0)
    assert_merged(other, schedule, config)
    assert other.schedule == fast.schedule
    assert [entry.kind for entry in other.report.unmerges] == [
        entry.kind for entry in fast.report.unmerges
    ]
    wide = config.images(batch=3, seed=4)
    for images in (x, wide):
        assert distance(run(other, images), run(fast, images)) < 1e-9
    other.r = 0
    # A weight that was expanded for a product of batches is one of rows again, as the model has it.
    assert distance(run(other, wide), run(program.module(), wide)) < 1e-12
