"""The weights that a recipe keeps beside it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tome_fx.errors import ConfigError, InputError
from tome_fx.files import replacing
from tome_fx.graph.insides import is_made_of_others
from tome_fx.module import ToMeModule


def check_values(module: nn.Module | torch.export.ExportedProgram, what: str, step: str) -> None:
    """Raise ConfigError where a tensor of ``module`` has no memory to read or to write."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ConfigError(
                f"{what} has no values for {name}, which is on the meta device: its weights can "
                f"neither be saved nor loaded. {step}."
            )


def save_weights(module: ToMeModule, weights: Path) -> None:
    """Write all parameters and buffers to a file, as safetensors."""
    package = _safetensors()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_made_of_others(tensor):
            raise ConfigError(
                f"{name} is of {type(tensor).__name__}, which holds other tensors, and safetensors "
                "keeps none. Save the recipe without weights and keep fast.state_dict() by "
                "torch.save, or apply the recipe to the model that is quantised again."
            )
    with replacing(weights) as file:
        try:
            package.torch.save_model(module, str(file))
        except package.SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None


def load_weights(module: ToMeModule, weights: Path) -> None:
    """Load a file of :func:`save_weights`, by name and strictly."""
    package = _safetensors()
    try:
        package.safe_open(str(weights), "pt")  # a damaged file has an error of its own kind
    except Exception as error:
        raise ConfigError(f"{weights} cannot be read: {error}.") from None
    try:
        package.torch.load_model(module, str(weights), strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(
            f"The weights in {weights} do not fit: {lines[min(1, len(lines) - 1)].strip()} Apply "
            "the recipe to the model that it was made for."
        ) from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ConfigError(
            "Weights of a recipe need the package safetensors: pip install safetensors."
        ) from None
    return safetensors
