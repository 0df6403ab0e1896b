"""Which models are one to the last bit once they are small: many names differ in size only."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry

# What a model keeps of where its weights come from: nothing that it computes reads it.
_ORIGINS = ("pretrained_cfg", "default_cfg")


def fingerprint(model: nn.Module, entry: Entry) -> str | None:
    """A digest of all that a model and its inputs are made of; None if it cannot be pickled.

    Modules by class and attributes, tensors by their bytes: two models with the same digest compute
    the same. Two that do may have different ones, by the order that they were made in say.
    """
    inputs = entry.inputs(2, flat=False, dtype=torch.float32, seed=2)
    file = io.BytesIO()
    try:
        _Pickler(file, model).dump((model, inputs, entry.one_image))
    except (AttributeError, TypeError, pickle.PicklingError):
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    """Writes a digest in place of each tensor, and nothing in place of where weights come from."""

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file, protocol=5)
        held = (vars(module).get(name) for module in model.modules() for name in _ORIGINS)
        self._origins = {id(value) for value in held if value is not None}

    def persistent_id(self, value: Any) -> Any:
        if id(value) in self._origins:
            return "origin"
        if not isinstance(value, Tensor):
            return None
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy()
        kind = type(value).__name__, tuple(value.shape), str(value.dtype), value.requires_grad
        return (*kind, hashlib.sha256(data.tobytes()).hexdigest())
