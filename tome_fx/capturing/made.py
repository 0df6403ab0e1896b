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

# Numbers in a value that is followed: positions of some hundred frames.
_MOST = 1 << 22
# Images beside those of the example that each is computed for.
_MORE = (0, 1, 14)
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
        super().__init__(_MOST, _MORE)
        self._made = 0

    def known_by_itself(self, tensor: Tensor) -> Known | None:
        """What an earlier call made and the model's code kept outside of its buffers."""
        plain = type(tensor) is Tensor and not tensor.is_meta and not tensor.requires_grad
        if not plain or isinstance(tensor, FakeTensor) or tensor.numel() > self._most:
            return None
        with _disable_current_modes():
            values = tuple(tensor.clone() for _ in _MORE)
        return Known(tensor, values, frozenset({self._new()}))

    def name_of_new(self, func: Any) -> str | None:
        name = getattr(func, "__name__", "")
        own = getattr(torch, name, None) if name in _MAKE else getattr(Tensor, name, None)
        made = name in _MAKE or name in OF_SHAPE
        return self._new() if made and func in (own, getattr(torch, name, None)) else None

    def _new(self) -> str:
        self._made += 1
        return str(self._made)
