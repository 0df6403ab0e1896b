"""Towers in their place in models of transformers, which ask more of them than a forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY

hf = pytest.importorskip("transformers")
pytestmark = [
    TINY,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]

VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 48,
}  # fmt: skip


def randomised(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def pixels(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator)


def llava() -> Any:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=60,
    )
    return randomised(hf.LlavaForConditionalGeneration(config))


def prompts(count: int) -> dict[str, Tensor]:
    ids = torch.tensor([[1, *[60] * 16, 5, 6]] * count)
    return {"input_ids": ids, "labels": ids, "pixel_values": pixels(count)}


def test_an_encoder_of_a_decoder_generates() -> None:
    text = hf.TrOCRConfig(
        vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=48,
        cross_attention_hidden_size=32, dropout=0.0,
    )  # fmt: skip
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(**VISION), text
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    whole = randomised(hf.VisionEncoderDecoderModel(config=config))
    x, labels = pixels(2), torch.tensor([[5, 6, 7]] * 2)
    asked = {"max_new_tokens": 3, "decoder_start_token_id": 1, "pad_token_id": 0}
    loss, told = whole(x, labels=labels).loss, whole.generate(x, **asked)
    for r, schedule in ((0, (0, 0)), (2, (2, 2))):
        fast = tome_fx.transform(whole.encoder, r, example_inputs=x)
        whole.encoder, encoder = fast, whole.encoder
        assert fast.schedule == schedule
        assert r or torch.equal(whole(x, labels=labels).loss, loss)
        assert whole.generate(x, **asked).shape == told.shape
        assert r or torch.equal(whole.generate(x, **asked), told)
        whole.encoder = encoder


def test_a_backbone_is_called_by_a_method_of_its_own() -> None:
    backbone = hf.Dinov2Config(
        **VISION | {"num_hidden_layers": 4}, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
    )
    whole = randomised(hf.DepthAnythingForDepthEstimation(hf.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, patch_size=8,
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, head_hidden_size=8,
    )))  # fmt: skip
    x = pixels(2)
    depth = whole(x).predicted_depth
    whole.backbone = tome_fx.transform(whole.backbone, 0, example_inputs=x)
    assert torch.equal(whole(x).predicted_depth, depth)
    whole.backbone.r = 2
    assert whole(x).predicted_depth.shape == depth.shape


def test_a_norm_of_the_tower_is_called_by_itself() -> None:
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
    config = hf.OwlViTConfig(
        text_config=text | {"max_position_embeddings": 16}, vision_config=VISION, projection_dim=32
    )
    whole = randomised(hf.OwlViTForObjectDetection(config))
    given = {"input_ids": torch.tensor([[1, 5, 6, 7]] * 2), "pixel_values": pixels(2)}
    logits = whole(**given).logits
    tower = whole.owlvit.vision_model
    whole.owlvit.vision_model = tome_fx.transform(tower, 0, example_inputs=pixels(2))
    assert torch.equal(whole(**given).logits, logits)


def test_what_a_whole_passes_on_is_taken() -> None:
    whole = llava()
    given = prompts(2)
    asked: list[dict[str, Any]] = [
        {}, {"num_items_in_batch": torch.tensor(20)}, {"use_cache": False},
        {"output_attentions": False, "num_items_in_batch": torch.tensor(7)},
    ]  # fmt: skip
    wanted = [whole(**given, **more).loss for more in asked]
    whole.model.vision_tower = tome_fx.transform(
        whole.model.vision_tower, 0, example_inputs=pixels(2),
        example_kwargs={"output_hidden_states": -2},
    )  # fmt: skip
    for more, loss in zip(asked, wanted, strict=True):
        assert torch.equal(whole(**given, **more).loss, loss)


def test_checkpointing_of_the_whole_reaches_the_tower() -> None:
    whole = llava()
    fast = tome_fx.transform(
        whole.model.vision_tower, 2, example_inputs=pixels(2),
        example_kwargs={"output_hidden_states": -2},
    )  # fmt: skip
    whole.model.vision_tower = fast
    whole.train()
    assert "checkpointed" not in str(fast.report)
    whole.gradient_checkpointing_enable()
    assert "gradients are checkpointed" in str(fast.report)
    whole(**prompts(2)).loss.backward()
    whole.gradient_checkpointing_disable()
    assert "checkpointed" not in str(fast.report)
