"""The backend of ``torch.compile`` on the tests' part of the zoo: the numbers of transform."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch._dynamo

import tome_fx
import tome_fx.compiling.backend as compiling
from tests.zoo.entry import leaves, randomise
from tests.zoo.test_zoo import CHOSEN, ENTRIES

# The longest to run; what Dynamo reads in them is in others too.
LONG = (
    "vision_transformer_sam/samvit_base_patch16_224",
    "swin_transformer/swin_tiny_patch4_window7_224",
    "levit/levit_128s",
    "transformers/DepthAnythingForDepthEstimation",
)
assert set(LONG) <= set(CHOSEN)


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize("key", [key for key in CHOSEN if key not in LONG])
def test_the_backend_computes_what_transform_does(key: str) -> None:
    torch._dynamo.reset()
    compiling._TOLD.clear()
    entry = ENTRIES[key]
    model = entry.build()
    randomise(model)
    args, kwargs = entry.inputs(2, flat=False, dtype=torch.float32, seed=2)
    with warnings.catch_warnings():
        # What export says of attributes that a model sets, transform of hooks that a library adds.
        warnings.simplefilter("ignore")
        fast = tome_fx.transform(
            model, 0.1, example_inputs=args, example_kwargs=kwargs or None, min_ratio=0
        )
    chosen = tome_fx.backend(0.1, inner_backend="eager", min_ratio=0)
    # What the backend warns of is an error here, so it left nothing unmerged.
    compiled = torch.compile(model, backend=chosen)
    for ours, theirs in zip(
        leaves(compiled(*args, **kwargs)), leaves(fast(*args, **kwargs)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [report.schedule for report in chosen.reports] == [fast.schedule]
    assert any(fast.schedule)
