"""What was asked for, checked; and what the answers to it depend on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tome_fx.capturing.examples import Example
from tome_fx.errors import ConfigError
from tome_fx.measuring.kept import hash_of, weights_of
from tome_fx.measuring.machine import device_name
from tome_fx.module import ToMeModule
from tome_fx.options import SAVED_OPTIONS
from tome_fx.own_matching import identity_of
from tome_fx.tuning.speed import Timed


def facts(
    original: nn.Module, fast: ToMeModule, batches: tuple[Example, ...], timed: Timed
) -> dict[str, Any]:
    """All that drift and speed depend on besides the schedule."""
    from tome_fx import __version__

    tensors = [
        (name, value)
        for batch in batches
        for name, value in (*_named(batch.args), *sorted(batch.kwargs.items()))
        if isinstance(value, torch.Tensor)
    ]
    device = tensors[0][1].device
    return {
        "model": fast.report.model,
        "weights": weights_of(original),
        "batches": [batch.batch for batch in batches],
        "images": hash_of(tensors),
        **{name: getattr(fast.settings, name) for name in SAVED_OPTIONS},
        "rules": sorted(fast.settings.rules),
        "matching": fast.settings.matching and identity_of(fast.settings.matching),
        "compiled": timed.compiled,
        "rounds": timed.rounds,
        "warmup": timed.warmup,
        "device": str(device),
        "autocast": _autocast(device.type),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "tome_fx": __version__,
    }


def _autocast(device: str) -> str | None:
    enabled = torch.is_autocast_enabled(device)
    return str(torch.get_autocast_dtype(device)) if enabled else None


def _named(args: tuple[Any, ...]) -> list[tuple[str, Any]]:
    return [(str(index), value) for index, value in enumerate(args)]


def check(
    target: Any,
    drift: Any,
    batch_size: Any,
    timed: Timed,
    budget: Any,
    measurements: Any,
    options: dict[str, Any],
) -> None:
    """Raise ConfigError for what is outside its range."""
    if (target is None) == (drift is None):
        raise ConfigError(
            "Give one goal: target_speedup, say 2.0, or max_drift, say 0.1"
            f"{'' if target is None else ', and not both'}."
        )
    if target is not None and not (_number(target) and 1.0 < target < math.inf):
        raise ConfigError(f"target_speedup={target!r} is not a number above 1.0.")
    if drift is not None and not (_number(drift) and 0.0 < drift < math.inf):
        raise ConfigError(f"max_drift={drift!r} is not a number above 0.0.")
    least: dict[str, tuple[Any, int]] = {
        "batch_size": (batch_size, 1),
        "rounds": (timed.rounds, 1),
        "warmup": (timed.warmup, 0),
        "budget": (budget, 8),
        "measurements": (measurements, 2),
    }
    for name, (value, low) in least.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError(f"{name}={value!r} is not a whole number from {low} upwards.")
    if not isinstance(timed.compiled, bool):
        raise ConfigError(f"compiled={timed.compiled!r} is not True or False.")
    for name, why in (("r", "the answer of tune"), ("min_ratio", "left out: speed is measured")):
        if name in options:
            raise ConfigError(f"{name} is {why}. Do not give it to tune.")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
