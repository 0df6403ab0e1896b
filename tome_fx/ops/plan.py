"""A merge as index maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tome_fx.ops.placing import permuted


class MergePlan(NamedTuple):
    """Which tokens of a stream merge, as index maps.

    Attributes:
        keep: ``[B, n - r]`` int64, the token that represents each output slot.
        src: ``[B, r]`` int64, the tokens that are merged away.
        dst: ``[B, r]`` int64, the output slot that each of them joins.
    """

    keep: Tensor
    src: Tensor
    dst: Tensor


def kept(plan: MergePlan) -> Tensor:
    """The token that represents each output slot, ``[B, n - r]``."""
    return plan.keep


def assignment(plan: MergePlan, onehot: bool = False) -> Tensor:
    """The output slot of each token of the stream before the merge, ``[B, n]`` int64."""
    batch, left = plan.keep.shape
    slots = torch.arange(left, device=plan.keep.device).expand(batch, left)
    order = torch.cat([plan.keep, plan.src], dim=1)
    return permuted(order, torch.cat([slots, plan.dst], dim=1), onehot)


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """Follow two index maps: ``later[b, earlier[b, i]]``."""
    return later.gather(1, earlier)


def identity(like: Tensor, count: int) -> Tensor:
    """The map of a stream without merges, ``[B, count]`` int64; ``like``: any ``[B, ...]``."""
    return torch.arange(count, device=like.device).expand(like.shape[0], count)
