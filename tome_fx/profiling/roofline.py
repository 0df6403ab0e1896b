"""The two numbers of a machine, measured: operations a second and bytes a second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tome_fx.measuring.machine import best


@dataclass(frozen=True)
class Roofline:
    """What a machine can do at its best: MACs and bytes a second."""

    macs: float
    bandwidth: float

    def seconds(self, macs: float, moved: float) -> float:
        """The least time for so many MACs and bytes, with both done at once."""
        return max(macs / self.macs, moved / self.bandwidth)


def measure(device: torch.device, dtype: torch.dtype, tries: int = 8) -> Roofline:
    """Measure a square matrix product and a copy, the best of ``tries`` runs each."""
    large = device.type != "cpu"
    width = 8192 if large else 2048
    # Larger than caches are: what a copy of a small tensor reads may still be near.
    length = (2**30 if large else 2**28) // 4
    left = torch.randn(width, width, device=device, dtype=dtype)
    out = torch.empty_like(left)
    source = torch.ones(length, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = best(lambda: torch.mm(left, left, out=out), device, tries)
        copy = best(lambda: target.copy_(source), device, tries)
    return Roofline(width**3 / product, 2 * length * source.element_size() / copy)
