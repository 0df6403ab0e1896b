"""Several steps as one, where a kernel does them at once; elsewhere they are those steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from tome_fx import kernels
from tome_fx.ops.matching import head_mean, match_metric
from tome_fx.ops.merging import merge
from tome_fx.ops.plan import MergePlan
from tome_fx.ops.sizes import merged_size


def match_keys(keys: Tensor, r: int, parity: int = 0, front: int = 0, back: int = 0) -> MergePlan:
    """``match`` of the ``similarity`` of the ``head_mean`` of keys ``[B, H, N, C]``.

    The kernel for it keeps the mean over heads and a tile of scores, and never writes scores.
    Scores that differ by rounding alone may rank another way than in the portable form.
    """
    if kernels.can_match(keys, keys.shape[2] - front - back):
        return MergePlan(*torch.ops.tome_fx.match(keys.detach(), r, parity, front, back))
    return match_metric(head_mean(keys, front, back), r, parity)


def merge_norm(
    x: Tensor,
    plan: MergePlan,
    size: Tensor | None,
    like: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    front: int = 0,
    back: int = 0,
    branch: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``merge`` of the tokens on axis 1, the LayerNorm of its result, and ``merged_size``.

    Args:
        x: ``[B, N, ...]``, see ``merge``.
        branch: of the shape of ``x``: what merges is their sum.
        like: of whose dtype or wider the sizes are, see ``merged_size``.
        shape: the last axes, over which the norm goes, with ``weight``, ``bias`` and ``eps``.

    Returns:
        The merged rows ``[B, N - r, ...]``, their norm, the sizes ``[B, n - r]``, and ``log2 size``
        of all rows ``[B, N - r]``, which is 0 for those in front of the stream and behind it.
    """
    if branch is not None and (branch.dtype, branch.shape) != (x.dtype, x.shape):
        x, branch = x + branch, None  # autocast tells them apart when a program runs
    narrow = like.dtype != torch.float64 and len(shape) == 1
    if narrow and kernels.can_merge(x, size, 1):
        # What autocast does to a LayerNorm: on a CPU it leaves it alone.
        wide = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
        merged, normed, new_size, level = torch.ops.tome_fx.merge_norm(
            x, *plan, size, weight, bias, eps, front, back, wide, branch
        )
        # Sizes carry no gradient: an attention that they weigh would ask for that of its mask.
        return merged, normed, new_size.detach(), level.detach()
    x = x if branch is None else x + branch
    new_size = merged_size(plan, size, like)
    merged = merge(x, plan, size, new_size, 1, front, back)
    level = pad(new_size.log2(), (front, back))
    return merged, torch.layer_norm(merged, shape, weight, bias, eps), new_size, level
