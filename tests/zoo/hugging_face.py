"""Vision encoders of transformers, two layers deep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.zoo.entry import Entry

SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
IMAGE = {"image_size": 96, "patch_size": 16}
ONE = (3, 96, 96)


def _model(model: str, config: str, **options: Any) -> Any:
    def build() -> nn.Module:
        made = getattr(hf, config)(**options)
        return getattr(hf, model)(made).eval()

    return build


def _entry(model: str, config: str, shape: tuple[int, ...] = ONE, extra: Any = None, note: str = "",
           attention: str = "sdpa", **options: Any) -> Entry:  # fmt: skip
    build = _model(model, config, **{**SMALL, **IMAGE, **options, "attn_implementation": attention})
    more = {} if extra is None else {"extra": extra}
    return Entry("transformers", model + note, build, shape, "pixel_values", **more)


def _noise(tokens: int) -> Any:
    """The fixed order that an MAE hides its patches in."""
    return lambda batch: {"noise": torch.arange(float(tokens)).expand(batch, tokens).clone()}


def entries() -> Iterator[Entry]:
    """The vision encoders of the library, with fused attention, and some without."""
    yield _entry("ViTForImageClassification", "ViTConfig")
    yield _entry("ViTForImageClassification", "ViTConfig", attention="eager", note=" eager")
    yield _entry("ViTModel", "ViTConfig", note=" hidden states", extra=_hidden)
    yield _entry("DeiTForImageClassificationWithTeacher", "DeiTConfig")
    yield _entry("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True)
    yield _entry("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True,
                 attention="eager", note=" eager")  # fmt: skip
    yield _entry("Data2VecVisionForImageClassification", "Data2VecVisionConfig",
                 use_relative_position_bias=True)  # fmt: skip
    yield _entry("Dinov2ForImageClassification", "Dinov2Config")
    yield _entry("Dinov2Backbone", "Dinov2Config", out_indices=[1, 2])
    yield _entry("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig")
    yield _entry("DINOv3ViTModel", "DINOv3ViTConfig", hidden_size=64)
    yield _entry("IJepaForImageClassification", "IJepaConfig")
    yield _entry("ViTMAEForPreTraining", "ViTMAEConfig", decoder_hidden_size=48,
                 decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
                 decoder_intermediate_size=96, extra=_noise(36))  # fmt: skip
    yield _entry("ViTMSNForImageClassification", "ViTMSNConfig")
    yield _entry("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=32)
    yield _entry("CLIPVisionModel", "CLIPVisionConfig", attention="eager", note=" eager")
    yield _entry("SiglipVisionModel", "SiglipVisionConfig")
    yield _entry("BlipVisionModel", "BlipVisionConfig", attention="eager")
    yield _entry("OwlViTVisionModel", "OwlViTVisionConfig")
    yield _entry("YolosForObjectDetection", "YolosConfig", image_size=[96, 96],
                 num_detection_tokens=5)  # fmt: skip
    yield _entry("DPTForDepthEstimation", "DPTConfig", num_hidden_layers=4,
                 backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32],
                 fusion_hidden_size=16)  # fmt: skip
    yield Entry("transformers", "DepthAnythingForDepthEstimation", _depth_anything, (3, 112, 112),
                "pixel_values")  # fmt: skip
    yield _entry("BeitForSemanticSegmentation", "BeitConfig", num_hidden_layers=4,
                 out_indices=[1, 2, 3, 4], use_auxiliary_head=False)  # fmt: skip
    yield Entry("transformers", "SamVisionModel", _sam, (3, 128, 128), "pixel_values")
    yield _entry("VideoMAEForVideoClassification", "VideoMAEConfig", (8, 3, 96, 96), num_frames=8,
                 tubelet_size=2)  # fmt: skip
    yield _entry("VivitForVideoClassification", "VivitConfig", (8, 3, 96, 96), num_frames=8,
                 tubelet_size=[2, 16, 16])  # fmt: skip
    yield _entry("TimesformerForVideoClassification", "TimesformerConfig", (4, 3, 96, 96),
                 num_frames=4, attention="eager")  # fmt: skip
    yield Entry("transformers", "ASTForAudioClassification", _model(
        "ASTForAudioClassification", "ASTConfig", **SMALL, max_length=96, num_mel_bins=64,
    ), (96, 64), "input_values")  # fmt: skip
    yield Entry("transformers", "PixtralVisionModel", _pixtral, ONE, "pixel_values",
                lambda batch: {"image_sizes": [(96, 96)] * batch}, one_image=True)  # fmt: skip
    yield Entry("transformers", "Siglip2VisionModel", _siglip2, (36, 768), "pixel_values",
                _siglip2_extra)  # fmt: skip


def _hidden(batch: int) -> Mapping[str, Any]:
    return {"output_hidden_states": True}


def _depth_anything() -> nn.Module:
    backbone = hf.Dinov2Config(
        **{**SMALL, "num_hidden_layers": 4}, image_size=112, patch_size=14,
        reshape_hidden_states=False, out_indices=[1, 2, 3, 4],
    )  # fmt: skip
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=48, patch_size=14,
        neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=16, head_hidden_size=8,
    )  # fmt: skip
    return hf.DepthAnythingForDepthEstimation(config).eval()


def _sam() -> nn.Module:
    config = hf.SamVisionConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, mlp_dim=96, image_size=128,
        patch_size=16, window_size=3, global_attn_indexes=[1, 3], output_channels=16,
    )  # fmt: skip
    return hf.SamVisionModel(config).eval()


def _pixtral() -> nn.Module:
    config = hf.PixtralVisionConfig(**SMALL, image_size=96, patch_size=16, head_dim=12)
    return hf.PixtralVisionModel(config).eval()


def _siglip2() -> nn.Module:
    config = hf.Siglip2VisionConfig(**SMALL, num_patches=36, patch_size=16)
    return hf.Siglip2VisionModel(config).eval()


def _siglip2_extra(batch: int) -> Mapping[str, Any]:
    return {
        "pixel_attention_mask": torch.ones(batch, 36, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[6, 6]] * batch),
    }
