"""Vision towers of transformers that take rows of patches and a grid, narrow, of random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 4}
THREE = WIDE | {"depth": 3, "num_heads": 2}
LAYERS = WIDE | {"num_hidden_layers": 3, "num_attention_heads": 2}
HUNYUAN = LAYERS | {"attention_heads": 2, "max_image_size": 32, "out_hidden_size": 32}
# Parameters and buffers that say where a patch is.
_PLACES = ("pos_emb", "position", "inv_freq", "freqs", "rope", "rotary")
Grid = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Tower:
    """A class of transformers, its configuration, and what it takes.

    Attributes:
        name: of the model; ``cls`` and ``config`` are its classes.
        patch: the shape of one patch of the input.
        grid: the name of the grid.
        around: the rows have an axis of 1 in front.
        kinds: how many different patches an image of duplicates has: windows hold few.
        r: tokens to merge in each row at each layer, for duplicates.
        clips: the model itself runs on grids of several frames.
    """

    name: str
    cls: str
    config: str
    options: dict[str, Any]
    patch: tuple[int, ...] = (96,)
    grid: str = "grid_thw"
    around: bool = False
    kinds: int = 3
    r: int = 2
    clips: bool = True
    extra: Callable[[Grid], dict[str, Tensor]] = lambda grid: {}

    def build(self) -> nn.Module:
        """The model, with positions that are the same everywhere."""
        path = f"transformers.models.{self.name}"
        made = importlib.import_module(f"{path}.modeling_{self.name}")
        told = importlib.import_module(f"{path}.configuration_{self.name}")
        model = getattr(made, self.cls)(getattr(told, self.config)(**self.options))
        model = model.eval().double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in [*model.named_parameters(), *model.named_buffers()]:
                if any(place in name for place in _PLACES) and value.is_floating_point():
                    value.zero_()
                elif value.dim() > 1 and isinstance(value, nn.Parameter):
                    noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                    value.copy_(noise * (1.2 / value[0].numel() ** 0.5))
        return model  # type: ignore[no-any-return]

    def given(self, grid: Grid, kinds: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Patches, of so many kinds or all different, and the grid by name."""
        generator = torch.Generator().manual_seed(1)
        rows = sum(frames * high * wide for frames, high, wide in grid)
        x = torch.randn(kinds or rows, *self.patch, generator=generator, dtype=torch.float64)
        if kinds:
            x = x[torch.randint(0, kinds, (rows,), generator=generator)]
        x = x[None] if self.around else x
        return x, {self.grid: torch.tensor(grid), **self.extra(grid)}


def _merge_sizes(grid: Grid) -> dict[str, Tensor]:
    return {"merge_sizes": torch.tensor([2] * len(grid))}


TOWERS = (
    Tower("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "Qwen2VLVisionConfig",
          {"depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
           "patch_size": 4}),
    Tower("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel", "Qwen2_5_VLVisionConfig",
          THREE | {"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1, 2]},
          kinds=2, r=1),
    Tower("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionConfig",
          THREE | {"out_hidden_size": 32, "num_position_embeddings": 64,
                   "deepstack_visual_indexes": [1]}),
    Tower("glm4v", "Glm4vVisionModel", "Glm4vVisionConfig",
          THREE | {"out_hidden_size": 32, "image_size": 32}, clips=False),
    Tower("kimi_k25", "Kimi_K25VisionModel", "Kimi_K25VisionConfig",
          LAYERS | {"pos_emb_height": 8, "pos_emb_width": 8}, patch=(3, 4, 4)),
    Tower("minimax_m3_vl", "MiniMaxM3VLVisionModel", "MiniMaxM3VLVisionConfig",
          LAYERS | {"image_size": 32}),
    Tower("video_llama_3", "VideoLlama3VisionModel", "VideoLlama3VisionConfig", LAYERS,
          patch=(48,), extra=_merge_sizes),
    Tower("lfm3_vl", "Lfm3VlVisionModel", "Lfm3VlVisionConfig",
          LAYERS | {"num_key_value_heads": 1, "layer_types": ["full_attention"] * 3}),
    Tower("paddleocr_vl", "PaddleOCRVisionModel", "PaddleOCRVisionConfig",
          LAYERS | {"image_size": 32}, patch=(3, 4, 4), around=True),
    Tower("hunyuan_vl", "HunYuanVLVisionTransformer", "HunYuanVLVisionConfig", HUNYUAN,
          patch=(48,), clips=False),
    Tower("hy_v4_vl", "HYV4VLVisionModel", "HYV4VLVisionConfig", HUNYUAN, patch=(48,)),
)  # fmt: skip
