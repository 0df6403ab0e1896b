"""Training with rounded weights and activations, by torchao."""

from __future__ import annotations

import pytest
import torch

import tome_fx
from tests.laws.common import TINY
from tests.quantised import quantization
from tests.test_regions import gradients
from tests.tiny import images, tiny

qat = pytest.importorskip("torchao.quantization.qat")

pytestmark = [TINY, pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao")]


def test_it_has_its_gradients() -> None:
    """Each linear rounds what it gets, straight through; before that zero points, within an op."""
    base = quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=quantization.PerGroup(32)
    )
    model, x = tiny(), images()
    quantization.quantize_(model, qat.QATConfig(base, step="prepare"))
    fast = tome_fx.transform(model.train(), 2)
    assert fast.schedule == (2, 2)
    assert torch.count_nonzero(gradients(fast, x)["blocks.0.attn.qkv.weight"])
    fast.r = 0
    assert torch.equal(fast(x), model(x))
    ours = gradients(fast, x)
    for name, gradient in gradients(model, x).items():
        torch.testing.assert_close(ours[name], gradient)
