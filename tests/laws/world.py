"""Everything that a call must leave as it was: the model, and the state of the process."""

from __future__ import annotations

import random
import warnings
from typing import Any

import torch
from torch import nn


def model_state(model: nn.Module) -> dict[str, Any]:
    """The bytes, identity and flags of a model's tensors, and what its modules carry."""
    tensors = [*model.named_parameters(remove_duplicate=False)]
    tensors += [*model.named_buffers(remove_duplicate=False)]
    state: dict[str, Any] = {
        name: (
            id(value),
            value.detach().clone().reshape(-1).view(torch.uint8).numpy().tobytes(),
            value.requires_grad,
            value.grad is None,
            value.data_ptr(),
            value._version,
        )
        for name, value in tensors
        if value.numel()
    }
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = {k: id(v) for k, v in vars(module).items() if k not in ("training",)}
        state[f"module {name}"] = (
            id(module),
            type(module),
            module.training,
            attributes,
            list(module.__dict__["_forward_hooks"].items()),
            list(module.__dict__["_forward_pre_hooks"].items()),
            list(module.__dict__["_backward_hooks"].items()),
        )
    return state


def process_state() -> dict[str, Any]:
    """Random states, modes, defaults and filters of this process and thread."""
    return {
        "torch rng": torch.get_rng_state().numpy().tobytes(),
        "python rng": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "filters": list(warnings.filters),
    }


def world(model: nn.Module) -> dict[str, Any]:
    """Both of the above, to compare before and after."""
    return model_state(model) | process_state()
