"""A backward of a model's own in a graph of Dynamo, which tracing it again would lose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tome_fx
from tests.test_regions import gradients, handed_on
from tests.tiny import Around, images, tiny
from tests.training.test_own_backwards import rounded, watched, with_calls


@pytest.mark.parametrize("function", [rounded, watched])
def test_the_backend_leaves_what_needs_them_alone(function: Callable[[Tensor], Tensor]) -> None:
    model, x = with_calls(function, "the head").train(), images()
    merging = tome_fx.backend(2, inner_backend="eager")
    compiled = torch.compile(model, backend=merging)
    with pytest.warns(tome_fx.ToMeWarning, match=r"a hook on a value.*under torch.no_grad"):
        ours = gradients(compiled, x)
    for name, gradient in gradients(model, x).items():
        torch.testing.assert_close(ours[f"_orig_mod.{name}"], gradient)
    with torch.no_grad():
        compiled(x)
    assert [report.schedule for report in merging.reports] == [(2, 2)]


def test_what_a_region_hands_on_keeps_its_gradient() -> None:
    """A cast to the dtype of the images makes no image of the tokens."""
    model, x = Around(handed_on, tiny()), images()
    merging = tome_fx.backend(0, inner_backend="eager")
    ours = gradients(torch.compile(model, backend=merging), x)
    assert [report.schedule for report in merging.reports] == [(0, 0)]
    for name, gradient in gradients(model, x).items():
        torch.testing.assert_close(ours[f"_orig_mod.{name}"], gradient)
