"""Models with weights of few bits, by torchao."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tests.versions import lacks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao looks for kernels that are not needed here
    quantization = pytest.importorskip("torchao.quantization")


def float8(by: Any) -> Any:
    """Activations too, with a scale for each row or one for the tensor."""
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=by)


CONFIGS: dict[str, Callable[[], Any]] = {
    "weights": lambda: quantization.Int8WeightOnlyConfig(),
    "activations": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
    "int4": lambda: quantization.IntxWeightOnlyConfig(torch.int4),
    "float8": lambda: quantization.Float8WeightOnlyConfig(),
    "float8 activations": lambda: float8(quantization.PerRow()),
}
NARROW = "float8 activations"  # by rows torch multiplies float8 to bfloat16 alone
OTHERS = [name for name in CONFIGS if name != NARROW]
BY_ROWS = pytest.param(NARROW, marks=lacks("multiplies float8 by tensors alone on a CPU"))


def quantisation_of(config: str, granularity: str) -> Any:
    return getattr(quantization, config)(granularity=getattr(quantization, granularity)())


def quantised(module: nn.Module, name: str) -> nn.Module:
    return by_config(module.bfloat16() if name == NARROW else module, CONFIGS[name]())


def by_config(module: nn.Module, config: Any) -> nn.Module:
    """torchao asks for a GPU before float8 activations; torch multiplies them on a CPU as well."""
    api = "torchao.quantization.quant_api._check_hardware_support"
    with patch(api, lambda *args, **kwargs: None, create=True):
        quantization.quantize_(module, config)
    return module


def packed(module: nn.Module) -> list[str]:
    """The weights that are made of other tensors."""
    return [n for n, p in module.named_parameters() if is_traceable_wrapper_subclass(p)]
