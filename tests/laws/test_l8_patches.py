"""L8 on images of several sizes in one batch, as a model of transformers takes them."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tome_fx
from tests.drawing import randomise
from tests.laws.common import TINY, distance

pytestmark = TINY
SIZES = [(4, 4), (2, 5)]
LONGEST = 16


# Written attention has its softmax in float32 there.
@pytest.mark.few(1)
@pytest.mark.parametrize(("attention", "bound"), [("sdpa", 1e-9), ("eager", 1e-5)])
def test_padded_patches_change_nothing(attention: str, bound: float) -> None:
    config = hf.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_patches=16, patch_size=4, attn_implementation=attention,
    )  # fmt: skip
    model = hf.Siglip2VisionModel(config).eval()
    randomise(model, 5)
    model.double()
    counts = torch.tensor([height * width for height, width in SIZES])
    patches = torch.randn(len(SIZES), LONGEST, 48, dtype=torch.float64)
    mask = (torch.arange(LONGEST) < counts[:, None]).long()
    given = {"pixel_attention_mask": mask, "spatial_shapes": torch.tensor(SIZES)}
    fast = tome_fx.transform(model, 3, example_inputs=(patches,), example_kwargs=given)
    assert fast.schedule == (3, 3, 3)
    with torch.no_grad():
        together = fast(patches, **given).pooler_output
        assert distance(together, model(patches, **given).pooler_output) > 1e-6
        for i, count in enumerate(counts.tolist()):
            own = {name: value[i : i + 1] for name, value in given.items()}
            own["pixel_attention_mask"] = own["pixel_attention_mask"][:, :count]
            alone = patches[i : i + 1, :count]
            single = tome_fx.transform(model, 3, example_inputs=(alone,), example_kwargs=own)
            assert distance(together[i : i + 1], single(alone, **own).pooler_output) < bound
