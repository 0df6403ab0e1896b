"""Bipartite soft matching (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_fx.ops.placing import permuted
from tome_fx.ops.plan import MergePlan
from tome_fx.ops.rows import product, scalar, wide

# Up to this many pairs each is compared with each, in one kernel where a compiler fuses it.
_FEW = 1024
# So many scores of an image are in memory at a time, 16 MiB in float32.
SCORES = 1 << 22


def head_mean(keys: Tensor, front: int = 0, back: int = 0) -> Tensor:
    """The matching metric of a stream: the mean over heads of K, without the protected tokens.

    Args:
        keys: ``[B, H, N, C]``, K as attention uses it.

    Returns:
        ``[B, n, C]`` in float32 or wider, without gradient: matching picks indices.
    """
    stream = keys.detach()[:, :, front : keys.shape[2] - back]
    return stream.mean(1, dtype=wide(keys.dtype))


def similarity(metric: Tensor, parity: int = 0) -> Tensor:
    """Cosine similarity of every A token to every B token.

    A are the stream's tokens at even positions of the whole sequence; ``parity`` is the number of
    protected tokens in front, modulo 2. A zero vector is similar to nothing (0), a NaN likewise,
    so that a bad image still gets a valid plan.

    Args:
        metric: ``[B, n, C]``.

    Returns:
        ``[B, |A|, |B|]``.
    """
    return _scores(*_parts(metric, parity))


def _parts(metric: Tensor, parity: int) -> tuple[Tensor, Tensor]:
    """A and B of unit length."""
    unit = of_unit_length(metric)
    return unit[:, parity::2], unit[:, 1 - parity :: 2]


def of_unit_length(metric: Tensor) -> Tensor:
    """Each row of ``[B, n, C]`` over its length; a zero vector stays one."""
    norm = metric.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, metric / norm, torch.zeros_like(metric))


def _scores(rows: Tensor, others: Tensor) -> Tensor:
    scores = product(rows, others.transpose(1, 2))
    # Only a NaN is unequal to itself. A compiler for CPUs has `isnan` one by one, this in vectors.
    return torch.where(torch.eq(scores, scores), scores, scalar(-2.0, scores))


def match(scores: Tensor, r: int, parity: int = 0, onehot: bool = False) -> MergePlan:
    """Bipartite soft matching (section 3.2) of a stream from its A to B similarities.

    Each A token points to its most similar B token; the ``r`` most similar pairs merge. Ties go to
    the lowest index. The new order is the survivors of A in their order, then B.

    Args:
        scores: ``[B, |A|, |B|]``.
        r: how many tokens to remove, ``0 <= r <= |A|``, and 0 if there is no B.
        onehot: without scatter, see ``ops.placing``.
    """
    batch, a, b = scores.shape
    if b == 0:
        # A row of one token: give it a partner that it never joins, since r is 0.
        best, partner = scores.new_zeros(batch, a), scores.new_zeros(batch, a, dtype=torch.int64)
    else:
        best = scores.amax(-1)
        partner = _first_at(scores, best)
    return plan_of(best, partner, b, r, parity, onehot)


def match_metric(metric: Tensor, r: int, parity: int = 0) -> MergePlan:
    """:func:`match` of the :func:`similarity` of a metric ``[B, n, C]``, a few rows at a time.

    For streams so long that their scores would need more memory than the model itself.
    """
    best, partner = _nearest_of(metric, parity)
    return plan_of(best, partner, metric.shape[1] - best.shape[1], r, parity)


def _nearest_of(metric: Tensor, parity: int) -> tuple[Tensor, Tensor]:
    """Each A token's best similarity and the first B token that has it, both ``[B, |A|]``."""
    rows, others = _parts(metric, parity)
    count = max(1, SCORES // max(1, others.shape[1]))
    found = [_nearest(part, others) for part in torch.split(rows, count, dim=1)]
    return torch.cat([best for best, _ in found], 1), torch.cat([index for _, index in found], 1)


def _nearest(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores(rows, others)
    best = scores.amax(-1)
    return best, _first_at(scores, best)


def plan_of(
    best: Tensor, partner: Tensor, b: int, r: int, parity: int = 0, onehot: bool = False
) -> MergePlan:
    """The plan that merges the ``r`` best pairs.

    Args:
        best: ``[B, |A|]``, each A token's similarity to its partner.
        partner: ``[B, |A|]`` int64, one of ``b`` B tokens.
    """
    batch, a = best.shape
    index = torch.arange(a, device=best.device)
    merged = _best_pairs(best, index, r)
    count = merged.long()
    before = count.cumsum(-1) - count
    # A permutation of A: survivors in their order, then the merged ones in theirs.
    place = torch.where(merged, a - r + before, index - before)
    order = permuted(place, index.expand(batch, a), onehot)
    source = order[:, a - r :]
    rest = torch.arange(b, device=best.device).expand(batch, b)
    keep = torch.cat([2 * order[:, : a - r] + parity, 2 * rest + 1 - parity], dim=1)
    return MergePlan(keep, 2 * source + parity, partner.gather(1, source) + (a - r))


def _best_pairs(best: Tensor, index: Tensor, r: int) -> Tensor:
    """``[B, |A|]`` boolean: the ``r`` best, of equals the first."""
    if best.shape[1] <= _FEW or r == 0:
        # The rank of each pair without a sort: how many are better, or as good and earlier.
        ahead = best[:, None, :] > best[:, :, None]
        level = best[:, None, :] == best[:, :, None]
        tied = torch.logical_and(level, index[None, :] < index[:, None])
        return torch.logical_or(ahead, tied).sum(-1) < r
    # The r-th best value alone: which of several equal ones topk takes is not promised.
    least = best.topk(r).values[:, -1:]
    above, level = best > least, best == least
    room = r - above.sum(-1, keepdim=True)
    return torch.logical_or(above, torch.logical_and(level, level.long().cumsum(-1) <= room))


def _first_at(scores: Tensor, best: Tensor) -> Tensor:
    """The first position of the maximum; ``argmax`` alone does not promise the first."""
    b = scores.shape[-1]
    index = torch.arange(b, device=scores.device)
    return torch.where(scores == best[..., None], index, scalar(b, index)).amin(-1)
