"""Vision encoders of transformers, two layers deep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

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


def _both(model: str, config: str, *args: Any, **options: Any) -> Iterator[Entry]:
    """With fused attention, and with scores, softmax and product as they are written out."""
    note = options.pop("note", "")
    yield _entry(model, config, *args, note=note, **options)
    yield _entry(model, config, *args, note=f"{note} eager", attention="eager", **options)


def entries() -> Iterator[Entry]:
    """The vision encoders of the library, with fused attention and without."""
    yield from _classifiers()
    yield from _encoders()
    yield from _dense()
    yield from _clips()
    yield Entry("transformers", "PixtralVisionModel", _pixtral, ONE, "pixel_values",
                lambda batch: {"image_sizes": [(96, 96)] * batch}, one_image=True)  # fmt: skip
    yield Entry("transformers", "LlavaModel tower", _llava_tower, ONE, "pixel_values", _hidden)
    yield Entry("transformers", "LlavaModel image features", _llava, ONE, "pixel_values")
    yield Entry("transformers", "Siglip2VisionModel", _siglip2, (36, 768), "pixel_values",
                _siglip2_extra)  # fmt: skip


def _classifiers() -> Iterator[Entry]:
    relative = {"use_relative_position_bias": True}
    yield from _both("ViTForImageClassification", "ViTConfig")
    yield from _both("DeiTForImageClassificationWithTeacher", "DeiTConfig")
    yield from _both("BeitForImageClassification", "BeitConfig", **relative)
    yield from _both("Data2VecVisionForImageClassification", "Data2VecVisionConfig", **relative)
    yield from _both("Dinov2ForImageClassification", "Dinov2Config")
    yield from _both("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig")
    yield from _both("IJepaForImageClassification", "IJepaConfig")
    yield from _both("ViTMSNForImageClassification", "ViTMSNConfig")


def _encoders() -> Iterator[Entry]:
    yield from _both("ViTModel", "ViTConfig", note=" hidden states", extra=_hidden)
    yield _entry("Dinov2Backbone", "Dinov2Config", out_indices=[1, 2])
    yield from _both("DINOv3ViTModel", "DINOv3ViTConfig", hidden_size=64)
    yield from _both("ViTMAEForPreTraining", "ViTMAEConfig", decoder_hidden_size=48,
                     decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
                     decoder_intermediate_size=96, extra=_noise(36))  # fmt: skip
    yield from _both("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=32)
    yield from _both("CLIPVisionModel", "CLIPVisionConfig")
    yield from _both("SiglipVisionModel", "SiglipVisionConfig")
    yield _entry("BlipVisionModel", "BlipVisionConfig", attention="eager")
    yield from _both("OwlViTVisionModel", "OwlViTVisionConfig")


def _dense() -> Iterator[Entry]:
    yield from _both("YolosForObjectDetection", "YolosConfig", image_size=[96, 96],
                     num_detection_tokens=5)  # fmt: skip
    yield _entry("DPTForDepthEstimation", "DPTConfig", num_hidden_layers=4,
                 backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32],
                 fusion_hidden_size=16)  # fmt: skip
    yield Entry("transformers", "DepthAnythingForDepthEstimation", _depth_anything, (3, 112, 112),
                "pixel_values")  # fmt: skip
    yield _entry("BeitForSemanticSegmentation", "BeitConfig", num_hidden_layers=4,
                 out_indices=[1, 2, 3, 4], use_auxiliary_head=False)  # fmt: skip
    for attention, note in (("sdpa", ""), ("eager", " eager")):
        yield Entry("transformers", f"SamVisionModel{note}", partial(_sam, attention),
                    (3, 128, 128), "pixel_values")  # fmt: skip


def _clips() -> Iterator[Entry]:
    """Of frames, and of sound."""
    yield from _both("VideoMAEForVideoClassification", "VideoMAEConfig", (8, 3, 96, 96),
                     num_frames=8, tubelet_size=2)  # fmt: skip
    yield from _both("VivitForVideoClassification", "VivitConfig", (8, 3, 96, 96), num_frames=8,
                     tubelet_size=[2, 16, 16])  # fmt: skip
    yield _entry("TimesformerForVideoClassification", "TimesformerConfig", (4, 3, 96, 96),
                 num_frames=4, attention="eager")  # fmt: skip
    for attention, note in (("sdpa", ""), ("eager", " eager")):
        yield Entry("transformers", f"ASTForAudioClassification{note}", _model(
            "ASTForAudioClassification", "ASTConfig", **SMALL, max_length=96, num_mel_bins=64,
            attn_implementation=attention,
        ), (96, 64), "input_values")  # fmt: skip


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


def _sam(attention: str) -> nn.Module:
    config = hf.SamVisionConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, mlp_dim=96, image_size=128,
        patch_size=16, window_size=3, global_attn_indexes=[1, 3], output_channels=16,
        attn_implementation=attention,
    )  # fmt: skip
    return hf.SamVisionModel(config).eval()


class _ImageFeatures(nn.Module):
    """What a language model is given of an image: the tokens before the last layer, projected."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.vision_tower, model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        features: Tensor = self.projector(states[-2][:, 1:])
        return features


def _llava_model() -> Any:
    text = hf.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=64, num_key_value_heads=2,
    )  # fmt: skip
    vision = hf.CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 3}, **IMAGE)
    return hf.LlavaModel(hf.LlavaConfig(vision_config=vision, text_config=text)).eval()


def _llava_tower() -> nn.Module:
    tower: nn.Module = _llava_model().vision_tower
    return tower


def _llava() -> nn.Module:
    return _ImageFeatures(_llava_model()).eval()


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
