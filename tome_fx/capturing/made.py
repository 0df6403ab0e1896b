"""Numbers that code reads from what it makes itself, of sizes alone: ``int(places.max()) + 1``.

Positions of patches are counted by ``arange``, written out for each image, and joined to those of
class tokens; rotary embeddings (VGGT, Depth Anything 3) ask how long a table they need. No image
has a part in that number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from tome_fx.capturing.followed import OF_SHAPE, Followed, Known
from tome_fx.capturing.sizes import Scenario

# Numbers in a value that is followed: positions of some hundred frames.
_MOST = 1 << 20
# Batches that each is computed for, beside the example's.
_BATCHES = (Scenario(), Scenario(1), Scenario(14, last=True))
_MAKE = frozenset(
    {"arange", "eye", "full", "linspace", "logspace", "ones", "tensor", "tril_indices",
     "triu_indices", "zeros"}
)  # fmt: skip


class MadeKnown(Followed):
    """Within, reading a number of what is made of sizes and constants alone gives that number.

    It is computed for the example's images and for more: what follows the batch is not read.
    """

    follows_writes = True

    def __init__(self) -> None:
        super().__init__(_MOST, _BATCHES)

    def known_by_itself(self, tensor: Tensor) -> Known | None:
        """What an earlier call made and the model's code kept outside of its buffers."""
        plain = type(tensor) is Tensor and not tensor.is_meta and not tensor.requires_grad
        if not plain or isinstance(tensor, FakeTensor) or tensor.numel() > self._most:
            return None
        with _disable_current_modes():
            values = tuple(tensor.clone() for _ in _BATCHES)
        return Known(tensor, values)

    def makes(self, func: Any) -> bool:
        name = getattr(func, "__name__", "")
        if name not in _MAKE and name not in OF_SHAPE:
            return False
        return func in (getattr(torch, name, None), getattr(Tensor, name, None))
