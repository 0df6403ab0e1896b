"""Every model of timm's Vision Transformer modules, shrunk by arguments of its constructor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import timm
from timm.models import is_model_in_modules
from torch import nn

from tests.zoo.entry import Entry

THIN = {"depth": 2, "embed_dim": 64, "num_heads": 4}
# For each module the arguments to try, in order; the first that the constructor takes is used.
SHRUNK: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "vision_transformer": (THIN, {"depth": 2}),
    "eva": (THIN, {**THIN, "num_kv_heads": (2, 2)}, {"depth": 2}),
    "deit": (THIN, {"depth": 2}),
    "vision_transformer_relpos": (THIN, {"depth": 2}),
    "vision_transformer_hybrid": (THIN, {"depth": 2}),
    "naflexvit": (THIN, {"depth": 2}),
    "cait": (THIN, {"depth": 2}),
    "qwen3_vit": (THIN, {"depth": 2}),
    "beit": (THIN, {"depth": 2}),
    "gemma4_vit": (THIN, {"depth": 2}),
    "vision_transformer_sam": (
        {**THIN, "depth": 4, "global_attn_indexes": (1, 3), "img_size": 256},
        {**THIN, "depth": 4, "global_attn_indexes": (1, 3)},
    ),
    "deepseek_vit": (THIN, {"depth": 2}),
    "convit": (THIN, {"depth": 2}),
    "xcit": ({"depth": 2, "embed_dim": 64, "num_heads": 4}, {"depth": 2}),
    "volo": ({},),  # its constructor takes no other width or depth
    "tnt": ({"depth": 2},),
    "pit": ({"depths": (1, 2, 1)}, {"depth": (1, 2, 1)}, {}),
    "crossvit": ({"depth": ((1, 2, 0), (1, 2, 0))}, {}),
    "vitamin": ({"depth": 2}, {}),
    "swin_transformer": ({"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}, {}),
    "swin_transformer_v2": (
        {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
        {},
    ),
    "hiera": ({"stages": (1, 1, 2, 1)}, {}),
    "mvitv2": ({"depths": (1, 1, 2, 1)}, {}),
    "levit": ({"depth": (1, 1, 1)}, {}),
    "twins": ({"depths": (1, 1, 2, 1)}, {}),
    "davit": ({"depths": (1, 1, 2, 1)}, {}),
    "maxxvit": ({},),
}
# Modules whose models take any size: their largest images make a sweep long and a row no better.
_LARGEST = {"davit": 224, "xcit": 224}


def _build(name: str, options: tuple[Mapping[str, Any], ...]) -> nn.Module:
    failure: Exception | None = None
    for arguments in options:
        try:
            return timm.create_model(name, **arguments).eval()
        except Exception as error:
            failure = error
    raise failure or ValueError(name)


def _shape(module: str, name: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    size = options.get("img_size") or _LARGEST.get(module)
    config = timm.get_pretrained_cfg(name)
    whole = tuple(config.input_size) if config else (3, 224, 224)
    return (3, size, size) if size and size < whole[-1] else whole


def entries(modules: tuple[str, ...] = tuple(SHRUNK)) -> Iterator[Entry]:
    """Every name of ``modules``."""
    for module in modules:
        options = SHRUNK[module]
        for name in timm.list_models():
            if is_model_in_modules(name, [module]):
                build: Callable[[], nn.Module] = partial(_build, name, options)
                yield Entry(module, name, build, _shape(module, name, options[0]))
