"""How far two outputs are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_distance(found: Tensor, original: Tensor) -> Tensor:
    """Return for each image the L2 norm of the difference over that of the original.

    Both are ``[B, ...]`` and floating; the result is ``[B]`` float64, 0 where they are equal. An
    original of zeros counts as one of the smallest normal float32.
    """
    found, original = found.float().flatten(1), original.float().flatten(1)
    norms = original.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    apart: Tensor = (found - original).norm(dim=1) / norms
    return apart.double()
