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


def compose_plans(later: MergePlan, earlier: MergePlan, slots: Tensor) -> MergePlan:
    """Two merges in a row as one: the groups of groups.

    Args:
        slots: the ``assignment`` of ``later``, ``[B, n]``.
    """
    keep, src = (earlier.keep.gather(1, index) for index in (later.keep, later.src))
    return MergePlan(
        keep,
        torch.cat([earlier.src, src], dim=1),
        torch.cat([slots.gather(1, earlier.dst), later.dst], dim=1),
    )


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


def join_maps(parts: list[Tensor | int], counts: list[int]) -> Tensor:
    """Index maps of pieces as one of the row that they make up.

    Args:
        parts: for each piece its map ``[B, m]``, or how many tokens it has, which stay.
        counts: the tokens of each piece that its map is about.

    Returns:
        ``[B, sum of m]`` positions in the row.
    """
    like = next(part for part in parts if isinstance(part, Tensor))
    row, start = [], 0
    for part, whole in zip(parts, counts, strict=True):
        row.append((part if isinstance(part, Tensor) else identity(like, part)) + start)
        start += whole
    return torch.cat(row, dim=1)


def join_plans(plans: list[MergePlan | int], before: list[int], after: list[int]) -> MergePlan:
    """The plans of pieces as one of the row that they make up.

    Args:
        plans: for each piece its plan, or how many tokens it has, which stay.
        before, after: the tokens of each piece before and after the merge.
    """
    merging = [plan for plan in plans if not isinstance(plan, int)]
    keep = join_maps([p if isinstance(p, int) else p.keep for p in plans], before)
    none = merging[0].src[:, :0]
    src = join_maps([none if isinstance(p, int) else p.src for p in plans], before)
    dst = join_maps([none if isinstance(p, int) else p.dst for p in plans], after)
    return MergePlan(keep, src, dst)
