"""One model of the zoo: how it is built and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Parameters and buffers with one of these in their names say where a token stands.
POSITIONS = ("pos_embed", "position", "pos_emb", "rel_pos", "relative_pos", "bands", "inv_freq",
             "freqs", "rope", "patch_pos", "pixel_pos", "temporal_embed")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A model by name.

    Attributes:
        family: the module or library that it comes from.
        build: makes the model, small, in float32.
        inputs: positional and keyword inputs for a batch, made of images of one colour each where
            ``flat``, else random.
        one_image: it takes its images in one row, so one at a time.
    """

    family: str
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 224, 224)
    keyword: str = ""
    extra: Callable[[int], Mapping[str, Any]] = field(default=lambda batch: {})
    one_image: bool = False

    def inputs(
        self, batch: int, flat: bool, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Images ``[batch, *shape]`` as the model takes them."""
        batch = 1 if self.one_image else batch
        generator = torch.Generator().manual_seed(seed)
        shape = (*self.shape[:-2], 1, 1) if flat else self.shape
        x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        x = x.expand(batch, *self.shape).to(dtype).contiguous()
        more = dict(self.extra(batch))
        return ((), {self.keyword: x, **more}) if self.keyword else ((x,), more)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Random weights of a healthy size, and positions that are the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    plain = [
        (name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    for name, value in [*model.named_parameters(), *model.named_buffers(), *plain]:
        if not value.is_floating_point() or not value.numel():
            continue
        if "periods" in name:
            value.fill_(float("inf"))
        elif any(part in name for part in POSITIONS):
            value.zero_()
        elif "running_var" in name:
            value.fill_(1.0)
        elif value.dim() > 1:
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise * (1.2 / value[0].numel() ** 0.5))
        else:
            centre = float("weight" in name or "gamma" in name or "scale" in name)
            value.copy_(centre + 0.2 * torch.randn(value.shape, generator=generator))


def leaves(value: Any) -> list[Tensor]:
    """The floating tensors of an output, in order."""
    found = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]
