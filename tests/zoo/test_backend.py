"""The backend of ``torch.compile`` on models of the zoo: what transform and compile make."""

from __future__ import annotations

import pytest
import torch

import tome_fx
from tests.zoo.entry import leaves, randomise
from tests.zoo.test_zoo import ENTRIES

# One of each way to merge. Of the tests' part of the zoo 27 models of 31 agree; the backend leaves
# four unmerged and says why: LeViT, ViT-MAE with its decoder, CLIP with its text, the fast path of
# nn.TransformerEncoder.
CHOSEN = (
    "deit/deit3_small_patch16_224",
    "naflexvit/naflexvit_base_patch16_gap",
    "cait/cait_s24_224",
    "tnt/tnt_s_patch16_224",
    "transformers/ViTModel hidden states",
    "open_clip/VisionTransformer",
)


@torch.no_grad()
@pytest.mark.parametrize("key", CHOSEN)
def test_the_backend_computes_what_transform_does(key: str) -> None:
    torch._dynamo.reset()
    entry = ENTRIES[key]
    model = entry.build()
    randomise(model)
    args, kwargs = entry.inputs(2, flat=False, dtype=torch.float32, seed=2)
    fast = tome_fx.transform(
        model, 0.1, example_inputs=args, example_kwargs=kwargs or None, min_ratio=0
    )
    chosen = tome_fx.backend(0.1, inner_backend="eager", min_ratio=0)
    compiled = torch.compile(model, backend=chosen)
    for ours, theirs in zip(
        leaves(compiled(*args, **kwargs)), leaves(fast(*args, **kwargs)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [report.schedule for report in chosen.reports] == [fast.schedule]
