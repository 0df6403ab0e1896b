"""Every model of timm's Vision Transformer modules, shrunk by constructor arguments; some whole."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import timm
from timm.models import is_model_in_modules
from torch import nn

from tests.zoo.entry import Entry

THIN = {"depth": 2, "embed_dim": 64, "num_heads": 4}
# Gated MLPs of 16/3 the width want a multiple of three.
WIDER = {**THIN, "embed_dim": 96}
# For each module the arguments to try, in order; the first that the constructor takes is used.
SHRUNK: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "vision_transformer": (THIN, WIDER, {"depth": 2}),
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
    "tnt": ({"depth": 2},),
    "pit": ({"depths": (1, 2, 1)}, {"depth": (1, 2, 1)}, {}),
    "vitamin": ({"depth": 2}, {}),
    "swin_transformer": ({"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)}, {}),
    "swin_transformer_v2": (
        {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
        {},
    ),
    "swin_transformer_v2_cr": (
        {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
        {},
    ),
    "hiera": ({"stages": (1, 1, 2, 1), "embed_dim": 32}, {}),
    "levit": (
        {"depth": (1, 1, 1), "embed_dim": (64, 96, 128), "num_heads": (2, 3, 4), "key_dim": 16},
    ),
    "twins": ({"depths": (1, 1, 2, 1)}, {}),
    "davit": (
        {"depths": (1, 1, 2, 1), "embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)},
    ),
    "maxxvit": (
        {"depths": (1, 1, 1, 1), "embed_dim": (32, 64, 128, 256)},
        {"depths": (1, 1, 2, 1)},
    ),
}
# CoAtNets stand in MaxViT's module and have one attention a block where those have two.
COATNETS: tuple[Mapping[str, Any], ...] = (
    {"depths": (1, 1, 4, 1), "embed_dim": (32, 64, 128, 256)},
    {"depths": (1, 1, 4, 1)},
)
# Where timm's functions take no other depth, the class behind them gets it: its place, and the
# argument in the place of that of the same name.
BEHIND: Mapping[str, tuple[str, str, Callable[[Any], Any]]] = {
    "crossvit": ("timm.models.crossvit.CrossVit", "depth", lambda depth: ((1, 2, 0), (1, 2, 0))),
    "volo": ("timm.models.volo.VOLO", "layers", lambda layers: (1, 2, 1, 1)),
    "mvitv2": (
        "timm.models.mvitv2.MultiScaleVit",
        "cfg",
        lambda cfg: replace(cfg, depths=(1, 1, 4, 2), embed_dim=32 * cfg.num_heads[0]),
    ),
}
# As they are, one of each module: deep, wide, on their own image size or what is told below.
FULL = (
    "vit_base_patch16_224", "eva02_small_patch14_224", "deit_small_distilled_patch16_224",
    "vit_relpos_small_patch16_224", "vit_small_r26_s32_224", "naflexvit_base_patch16_gap",
    "cait_xxs24_224", "qwen3_vit_88m", "beit_base_patch16_224", "gemma4_vit_167m",
    "samvit_base_patch16_224", "deepseek_vit_412m", "convit_tiny", "xcit_nano_12_p16_224",
    "volo_d1_224", "tnt_s_patch16_224", "pit_s_224", "crossvit_9_240", "vitamin_small_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224",
    "hiera_small_224",
    "mvitv2_tiny", "levit_256", "twins_svt_small", "davit_tiny", "maxvit_tiny_tf_224",
)  # fmt: skip
# Minutes for one image of their own, in float64.
_FULL_SIZES = {"gemma4_vit_167m": 240, "deepseek_vit_412m": 252, "qwen3_vit_88m": 384}
# One of each further module with attention in it, as they are: hybrids for phones and for pyramids.
FURTHER = (
    "botnet26t_256", "caformer_s18", "coat_lite_tiny", "edgenext_xx_small", "efficientformer_l1",
    "efficientvit_m0", "fastvit_sa12", "gcvit_xxtiny", "hieradet_small", "iformer_t",
    "mobilevit_xxs", "nest_tiny", "nextvit_small", "pvt_v2_b0", "tiny_vit_5m_224",
    "visformer_tiny",
)  # fmt: skip
# The largest images make a sweep long and a row no better. Some constructors must be told.
_LARGEST = {"davit": 224, "xcit": 224, "vitamin": 160, "volo": 224, "maxxvit": 224,
            "gemma4_vit": 384}  # fmt: skip
_TOLD = ("vitamin", "volo", "maxxvit")


def _small(name: str) -> tuple[int, ...]:
    channels, height, width = _shape("", name, {})
    return channels, min(height, 256), min(width, 256)


def _build(name: str, options: tuple[Mapping[str, Any], ...]) -> nn.Module:
    failure: Exception | None = None
    for arguments in options:
        try:
            return timm.create_model(name, **arguments).eval()
        except Exception as error:
            failure = error
    raise failure or ValueError(name)


def _behind(module: str, name: str, options: Mapping[str, Any]) -> nn.Module:
    place, argument, changed = BEHIND[module]
    constructor = pkgutil.resolve_name(place)

    def shrunk(*args: Any, **kwargs: Any) -> nn.Module:
        made: nn.Module = constructor(*args, **{**kwargs, argument: changed(kwargs[argument])})
        return made

    with mock.patch(place, shrunk):
        return timm.create_model(name, **options).eval()


def _shape(module: str, name: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    size = options.get("img_size") or _LARGEST.get(module)
    config = timm.get_pretrained_cfg(name)
    whole = tuple(config.input_size) if config else (3, 224, 224)
    return (3, size, size) if size and size < whole[-1] else whole


def entries(modules: tuple[str, ...] = (*SHRUNK, *BEHIND)) -> Iterator[Entry]:
    """Every name of ``modules``."""
    for module in modules:
        for name in timm.list_models():
            if is_model_in_modules(name, [module]):
                options = COATNETS if "coat" in name else SHRUNK.get(module, ({},))
                shape = _shape(module, name, options[0])
                if module in _TOLD and shape != _shape("", name, {}):
                    options = tuple({**arguments, "img_size": shape[-1]} for arguments in options)
                behind = partial(_behind, module, name, options[0])
                build = behind if module in BEHIND else partial(_build, name, options)
                yield Entry(module, name, build, shape)
    for name in FULL:
        options = {"img_size": _FULL_SIZES[name]} if name in _FULL_SIZES else {}
        yield Entry("full size", name, partial(_build, name, (options,)), _shape("", name, options))
    for name in FURTHER:
        shape = _small(name)
        build = partial(_build, name, ({"img_size": shape[-1]}, {}))
        yield Entry("more of timm", name, build, shape)
