"""A timm model by its name, with its weights, on its device; or one line that says why not."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tome_fx.cli import weights
from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.preprocess import DataConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEED = 0


@dataclass(frozen=True)
class ModelSpec:
    """Which model is asked for. `pretrained=None` tries, and takes random weights otherwise."""

    name: str
    pretrained: bool | None = False
    checkpoint: Path | None = None
    img_size: int | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    model_kwargs: Sequence[str] = ()
    device: str = "cpu"
    precision: str = "float32"


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and how its input looks. `weights` says in words what it holds."""

    name: str
    model: nn.Module
    config: DataConfig
    weights: str
    device: torch.device
    dtype: torch.dtype

    def example(self, batch: int = 2) -> Tensor:
        """Return a random input [batch, C, H, W], the same at each call."""
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(batch, *self.config.input_size, generator=generator)
        return x.to(self.device, self.dtype)


def load(spec: ModelSpec) -> Loaded:
    """Return the model. Random weights are those of torch.manual_seed(0).

    Raises CliError for an unknown name (with the closest ones), options that the model does not
    take, weights that cannot be had, a device that is not there.
    """
    device = open_device(spec.device)
    if spec.precision not in (*DTYPES, "amp"):
        raise CliError(_not_one_of("--precision", spec.precision, [*DTYPES, "amp"]))
    if spec.checkpoint is not None and not spec.checkpoint.is_file():
        raise CliError(f"--checkpoint {spec.checkpoint}: no such file")
    check_name(spec.name)
    model, source = _create(spec)
    if spec.checkpoint is not None:
        inside = weights.load_checkpoint(model, spec.checkpoint)
        source = f"checkpoint {spec.checkpoint}" + (f", {inside}" if inside else "")
    dtype = DTYPES.get(spec.precision, torch.float32)
    model.eval().requires_grad_(False)
    return Loaded(
        spec.name, _move(model, device, dtype), _config(model, spec), source, device, dtype
    )


def check_name(name: str) -> None:
    """Raise CliError, with the closest names, unless timm knows the model."""
    import timm

    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; closest: {', '.join(close)}" if close else ""
        raise CliError(f"timm has no model {base!r}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        close = difflib.get_close_matches(tag, tags, n=3, cutoff=0.3) or tags[:3]
        hint = f"; it has {', '.join(close)}" if close else "; it has none"
        raise CliError(f"timm has no weights {tag!r} for {base}{hint}")


def open_device(name: str) -> torch.device:
    """Return the device. Raises CliError where the name is wrong or the device is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CliError(f"--device {name}: {one_line(error, 160)}") from None
    if device.type == "meta":
        raise CliError("--device meta: nothing can be computed there")
    return device


def _create(spec: ModelSpec) -> tuple[nn.Module, str]:
    options: dict[str, Any] = {
        "img_size": spec.img_size,
        "num_classes": spec.num_classes,
        "in_chans": spec.in_chans,
    }
    options = {key: value for key, value in options.items() if value is not None}
    options |= parse_kwargs(spec.model_kwargs)
    try:
        return weights.create(spec.name, spec.pretrained, spec.checkpoint is None, options)
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in options:
            raise CliError(f"{spec.name} takes no {_flag(unknown[1], spec)}") from error
        raise CliError(f"{spec.name}: {one_line(error)}") from error


def _flag(option: str, spec: ModelSpec) -> str:
    named = getattr(spec, option, None) is not None
    return f"--{option.replace('_', '-')}" if named else f"--model-kwargs {option}"


def _move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    try:
        return model.to(device=device, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise CliError(f"--device {device}, {dtype}: {one_line(error, 200)}") from error


def _config(model: nn.Module, spec: ModelSpec) -> DataConfig:
    from timm.data import resolve_data_config

    wanted = {"img_size": spec.img_size, "in_chans": spec.in_chans}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    return DataConfig.from_timm(resolve_data_config(wanted, model=model))


def parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as a dict; values are Python literals, or else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise CliError(f"--model-kwargs {pair}: not of the form KEY=VALUE")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _not_one_of(flag: str, value: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{flag} {value}: not one of {', '.join(allowed)}{hint}"
