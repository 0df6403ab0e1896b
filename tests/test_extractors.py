"""What lies within a model: extractors are transformed, results are not traced again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


def _randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise.to(parameter.dtype), alpha=0.05)
    return model.eval()


def _of_torchvision() -> nn.Module:
    model = _randomised(VisionTransformer(16, 4, 3, 2, 16, 32, num_classes=5))
    return create_feature_extractor(model, ["encoder.layers.encoder_layer_1", "heads"]).eval()


def _with_two_modes() -> nn.Module:
    """One that does otherwise in training, and writes to its buffers there."""
    model = VisionTransformer(16, 4, 3, 2, 16, 32, num_classes=5, dropout=0.5)
    model.conv_proj = nn.Sequential(model.conv_proj, nn.BatchNorm2d(16))
    return create_feature_extractor(_randomised(model), ["encoder", "heads"]).eval()


def _of_timm() -> nn.Module:
    made = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, features_only=True)
    return _randomised(made)


def _cut_of_timm() -> nn.Module:
    return create_feature_extractor(tiny(img_size=64), ["blocks.1", "norm"]).eval()


EXTRACTORS = {
    "torchvision": (_of_torchvision, 16),
    "timm": (_of_timm, 64),
    "timm by torchvision": (_cut_of_timm, 64),
}


def _tensors(result: Any) -> list[Tensor]:
    return list(result.values()) if isinstance(result, dict) else list(result)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_extractor_keeps_its_features(name: str) -> None:
    made, size = EXTRACTORS[name]
    model, x = made(), torch.randn(3, 3, size, size)
    expected, same = model(x), tome_fx.transform(model, 0, example_inputs=x)(x)
    assert type(same) is type(expected)
    for one, other in zip(_tensors(same), _tensors(expected), strict=True):
        assert torch.equal(one, other)
    fast = tome_fx.transform(model, 3, example_inputs=x)
    assert sum(fast.schedule) >= 6
    for one, other in zip(_tensors(fast(x)), _tensors(expected), strict=True):
        assert one.shape == other.shape
        assert not torch.allclose(one, other)
    places = {block.attention.rpartition(".")[2] for block in fast.report.blocks}
    assert places <= {"self_attention", "attn"}
    # How many images there are, which nn.MultiheadAttention asks of each value, needs no tokens.
    assert not any("sym_size" in told.op for told in fast.report.unmerges)


@pytest.mark.parametrize("within", [False, True])
def test_an_extractor_keeps_its_mode(within: bool) -> None:
    """A copy of one comes back in training, dropout and batch norm with it."""
    made = _with_two_modes()
    model = nn.Sequential(made).eval() if within else made
    x = torch.randn(3, 3, 16, 16)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = model(x)
    fast = tome_fx.transform(model, 0, example_inputs=x)
    for result in (fast, copy.copy(fast), copy.deepcopy(fast), fast.train().eval()):
        assert not result.training
        for name, value in result(x).items():
            assert torch.equal(value, expected[name])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert any("dropout" in str(node.target) for node in fast.train().graph.nodes)
    assert not model.training
    assert not made.training


def test_a_recipe_with_weights_keeps_the_mode_of_an_extractor(tmp_path: Path) -> None:
    model, x = _with_two_modes(), torch.randn(3, 3, 16, 16)
    fast = tome_fx.transform(model, 3, example_inputs=x)
    tome_fx.save_recipe(fast, tmp_path / "recipe.json", weights=True)
    again = tome_fx.apply_recipe(model, tmp_path / "recipe.json")
    assert not again.training
    assert torch.equal(again(x)["heads"], fast(x)["heads"])


@pytest.mark.parametrize(
    "trace", [torch.fx.symbolic_trace, lambda fast: create_feature_extractor(fast, ["head"])]
)
@pytest.mark.parametrize("r", [0, 2])
def test_a_result_is_not_traced_again(trace: Any, r: int) -> None:
    fast = tome_fx.transform(tiny(), r)
    with pytest.raises(tome_fx.ConfigError, match=r"is a graph already.*Trace the model, or cut"):
        trace(fast)
    assert fast(images(2)).shape == (2, 10)
