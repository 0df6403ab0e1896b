"""What the law tests share: drawing a model, transforming it, and seeing that it merged.

No law may hold for nothing: `assert_merged` checks that tokens went away as the schedule says, and
`assert_differs` that on a random image the output moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import tome_fx
from tests.architectures import Architecture, architectures, schedules
from tests.models import Plain
from tests.plain_drawing import plain_models

Subject = Architecture | Plain

# A warning that is right: on models of a few tokens the matching costs more than it saves.
TINY = pytest.mark.filterwarnings("ignore:Merging costs more than it saves:tome_fx.ToMeWarning")


def subjects(min_depth: int = 1, max_depth: int = 3) -> st.SearchStrategy[Subject]:
    """A timm model (also with differential attention) or a hand-written one."""
    timm_models = architectures(min_depth, max_depth, attention=("attn", "attn", "diff"))
    return st.one_of(timm_models, plain_models(min_depth, max_depth))


@st.composite
def subjects_with_schedule(draw: st.DrawFn, max_depth: int = 3) -> tuple[Subject, list[int]]:
    """A model and the tokens to remove in each layer, so that the output must change."""
    config = draw(subjects(max_depth=max_depth))
    return config, draw(schedules(config.depth, config.stream))


def transform(model: nn.Module, x: Tensor, r: Any, **options: Any) -> Any:
    """The model rewritten for inputs like ``x``."""
    return tome_fx.transform(model, r=r, example_inputs=(x,), **options)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """One forward pass without gradients."""
    with torch.no_grad():
        return model(x)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest expected value; NaN is infinite."""
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    gap = (actual.double() - expected.double()).abs().max()
    value = float(gap / expected.double().abs().max())
    return value if value == value else float("inf")


def assert_merged(fast: Any, schedule: Sequence[int], config: Subject) -> None:
    """The program removes the tokens that the schedule says, layer by layer."""
    assert sum(fast.schedule) > 0
    if getattr(config, "readout", "") != "patch":  # else one patch is protected, perhaps
        assert tuple(fast.schedule) == tuple(schedule)
    left = config.stream + config.protected
    for block, removed in zip(fast.report.blocks, fast.schedule, strict=True):
        assert block.removed == removed
        assert (block.tokens_in, block.tokens_out) == (left, left - removed)
        left -= removed


def assert_differs(fast: Any, model: nn.Module, x: Tensor, config: Subject) -> None:
    """On a random image the merges change the output, wherever they can be seen."""
    if config.reads_last_layer or sum(fast.schedule[:-1]) > 0:
        assert distance(run(fast, x), run(model, x)) > 1e-6


def groups_are_alike(fast: Any, x: Tensor, labels: Sequence[int]) -> bool:
    """True if every merged token holds patches of one class only, in every layer and image."""
    classes = torch.tensor(labels)
    for layer in fast.token_map(x):
        for slots in layer:
            for slot in slots.unique():
                if len(classes[slots == slot].unique()) > 1:
                    return False
    return True


def tolerance(dtype: torch.dtype) -> float:
    """How far rounding alone may move an output."""
    return {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.2}[dtype]
