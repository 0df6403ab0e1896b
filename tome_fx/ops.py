"""Token merging as pure tensor functions; the rewritten graph calls these by name.

Letters: ``B`` images, ``N`` tokens of an axis, ``n`` stream tokens on it (the others are protected
and stand ``front`` before and ``back`` behind the stream), ``r`` merges, ``C`` channels.
Source of the method: Token Merging (Bolya et al., ICLR 2023), section 3.

No function keeps state, sorts, or reduces with ``scatter_reduce``: all of them trace through
``torch.compile``, ``torch.export``, autograd and ``torch.func``, and give the same bits each time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


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


def check_input(x: Tensor, shape: tuple[int, ...], name: str, tokens: int) -> Tensor:
    """Return ``x`` if its shape behind the batch is ``shape``; else raise ``ShapeError``."""
    if tuple(x.shape[1:]) != shape:
        from tome_fx.errors import ShapeError

        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, but the model was captured with "
            f"{('batch', *shape)}, which makes {tokens} tokens. "
            "Transform the model again with example_inputs of the new size."
        )
    return x


def head_mean(keys: Tensor, front: int = 0, back: int = 0) -> Tensor:
    """The matching metric of a stream: the mean over heads of K, without the protected tokens.

    Args:
        keys: ``[B, H, N, C]``, K as attention uses it.

    Returns:
        ``[B, n, C]`` in float32 or wider, without gradient: matching picks indices.
    """
    stream = keys.detach()[:, :, front : keys.shape[2] - back]
    return stream.mean(1, dtype=_wide(keys.dtype))


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
    norm = metric.norm(dim=-1, keepdim=True)
    unit = torch.where(norm > 0, metric / norm, torch.zeros_like(metric))
    scores = unit[:, parity::2] @ unit[:, 1 - parity :: 2].transpose(1, 2)
    return torch.where(scores.isnan(), torch.full_like(scores, -2.0), scores)


def match(scores: Tensor, r: int, parity: int = 0) -> MergePlan:
    """Bipartite soft matching (section 3.2) of a stream from its A to B similarities.

    Each A token points to its most similar B token; the ``r`` most similar pairs merge. Ties go to
    the lowest index. The new order is the survivors of A in their order, then B.

    Args:
        scores: ``[B, |A|, |B|]``.
        r: how many tokens to remove, ``0 <= r <= |A|``, and 0 if there is no B.
    """
    batch, a, b = scores.shape
    best = scores.amax(-1)
    partner = _first_at(scores, best)
    index = torch.arange(a, device=scores.device)
    # The rank of each pair without a sort: how many pairs are better, or as good and earlier.
    ahead = best[:, None, :] > best[:, :, None]
    tied = (best[:, None, :] == best[:, :, None]) & (index[None, :] < index[:, None])
    rank = (ahead | tied).sum(-1)
    merged = rank < r
    before = merged.long().cumsum(-1) - merged.long()
    # A permutation of A: survivors in their order, then the merged ones in theirs.
    place = torch.where(merged, a - r + before, index - before)
    order = torch.zeros_like(place).scatter(1, place, index.expand(batch, a))
    source = order[:, a - r :]
    rest = torch.arange(b, device=scores.device).expand(batch, b)
    keep = torch.cat([2 * order[:, : a - r] + parity, 2 * rest + 1 - parity], dim=1)
    return MergePlan(keep, 2 * source + parity, partner.gather(1, source) + (a - r))


def _first_at(scores: Tensor, best: Tensor) -> Tensor:
    """The first position of the maximum; ``argmax`` alone does not promise the first."""
    b = scores.shape[-1]
    index = torch.arange(b, device=scores.device)
    return torch.where(scores == best[..., None], index, b).amin(-1)


def merged_size(plan: MergePlan, size: Tensor | None, like: Tensor) -> Tensor:
    """Group sizes after a merge, ``[B, n - r]``; ``size`` None means that all were 1.

    In float32, or in the dtype of ``like`` where that is wider: sizes above 256 are not whole
    numbers in bfloat16.
    """
    if size is None:
        ones = like.new_ones(1, dtype=_wide(like.dtype))
        kept, joined = ones.expand(plan.keep.shape), ones.expand(plan.src.shape)
    else:
        kept, joined = size.gather(1, plan.keep), size.gather(1, plan.src)
    return kept.scatter_add(1, plan.dst, joined)


def merge(
    x: Tensor,
    plan: MergePlan,
    size: Tensor | None,
    new_size: Tensor,
    dim: int = 1,
    front: int = 0,
    back: int = 0,
) -> Tensor:
    """Replace each group by its size-weighted mean (section 3.1).

    Args:
        x: ``[B, ..., N, ...]`` with the tokens on ``dim``; any floating dtype.
        plan: of the stream on that axis.
        size: ``[B, n]`` group sizes before, or None for all ones.
        new_size: ``[B, n - r]`` group sizes after.

    Returns:
        ``[B, ..., N - r, ...]`` in the dtype of ``x``.
    """
    inverse = new_size.reciprocal()
    joined = inverse.gather(1, plan.dst)
    if size is not None:
        joined = joined * size.gather(1, plan.src)
    kept = inverse if size is None else inverse * size.gather(1, plan.keep)
    # Weights of at most 1 before the sum: x * size could leave the range of fp16.
    return _combine(x, plan, kept, joined, dim, front, back)


def merge_sum(x: Tensor, plan: MergePlan, dim: int = 1, front: int = 0, back: int = 0) -> Tensor:
    """Replace each group by its sum: the merge of a value that holds group totals."""
    return _combine(x, plan, None, None, dim, front, back)


def _combine(
    x: Tensor,
    plan: MergePlan,
    kept: Tensor | None,
    joined: Tensor | None,
    dim: int,
    front: int,
    back: int,
) -> Tensor:
    tokens = x.movedim(dim, 1)
    slots = _whole(plan.keep, front, back, tokens.shape[1])
    base = _rows(tokens, slots)
    added = _rows(tokens, plan.src + front)
    wide = _wide(x.dtype)
    if kept is not None and joined is not None:
        ends = kept.new_ones(kept.shape[0], 1)
        weight = torch.cat([ends.expand(-1, front), kept, ends.expand(-1, back)], dim=1)
        base = base.to(wide) * _tail(weight, base)
        added = added.to(wide) * _tail(joined, added)
    target = _tail(plan.dst + front, added).expand(added.shape)
    return base.scatter_add(1, target, added).to(x.dtype).movedim(1, dim)


def unmerge(x: Tensor, assignment: Tensor, dim: int = 1, front: int = 0, back: int = 0) -> Tensor:
    """Give each token of the stream its group's value, in the original order.

    Args:
        x: ``[B, ..., front + n' + back, ...]``.
        assignment: ``[B, n]`` the slot of each token.

    Returns:
        ``[B, ..., front + n + back, ...]``.
    """
    return take(x, assignment, dim, front, back)


def take(x: Tensor, index: Tensor, dim: int = 1, front: int = 0, back: int = 0) -> Tensor:
    """Rows of the stream by index, the protected tokens left as they are.

    Args:
        x: ``[B, ..., N, ...]`` with the tokens on ``dim``.
        index: ``[B, m]`` positions in the stream.

    Returns:
        ``[B, ..., front + m + back, ...]``.
    """
    tokens = x.movedim(dim, 1)
    return _rows(tokens, _whole(index, front, back, tokens.shape[1])).movedim(1, dim)


def take_constant(x: Tensor, index: Tensor, dim: int, front: int = 0, back: int = 0) -> Tensor:
    """:func:`take` from a value without a batch axis: ``[..., N, ...] -> [B, ..., N', ...]``."""
    tokens = x.movedim(dim, 0)
    rows = tokens[_whole(index, front, back, tokens.shape[0])]
    return rows.movedim(1, dim + 1)


def place_batch(x: Tensor, rank: int, batch: int, heads: list[int] | None = None) -> Tensor:
    """``[B, own axes]`` to ``rank`` axes that broadcast, aligned at the last, with B on ``batch``.

    Axes that the value lacks become 1; its own axis at ``batch``, if it has one, is 1 and goes.
    ``heads`` are inner positions of the batch axis that share an image.
    """
    own = x.dim() - 1
    place = batch - (rank - own)
    if place >= 0:
        x = x.squeeze(place + 1)
    for _ in range(rank - x.dim()):
        x = x.unsqueeze(1)
    if heads:
        width = math.prod(heads)
        x = x.unsqueeze(1).expand(-1, width, *x.shape[1:]).flatten(0, 1)
    return x.movedim(0, batch)


def kept(plan: MergePlan) -> Tensor:
    """The token that represents each output slot, ``[B, n - r]``."""
    return plan.keep


def assignment(plan: MergePlan) -> Tensor:
    """The output slot of each token of the stream before the merge, ``[B, n]`` int64."""
    batch, left = plan.keep.shape
    slots = torch.arange(left, device=plan.keep.device).expand(batch, left)
    order = torch.cat([plan.keep, plan.src], dim=1)
    return torch.zeros_like(order).scatter(1, order, torch.cat([slots, plan.dst], dim=1))


def compose(later: Tensor, earlier: Tensor) -> Tensor:
    """Follow two index maps: ``later[b, earlier[b, i]]``."""
    return later.gather(1, earlier)


def identity(like: Tensor, count: int) -> Tensor:
    """The map of a stream without merges, ``[B, count]`` int64; ``like``: any ``[B, ...]``."""
    return torch.arange(count, device=like.device).expand(like.shape[0], count)


def along(
    size: Tensor, rank: int, batch: int, dim: int, front: int = 0, back: int = 0, repeat: int = 1
) -> Tensor:
    """Group sizes shaped to broadcast against a value of ``rank`` axes.

    Args:
        size: ``[B, n]``.
        batch: axis of the batch; ``repeat`` inner positions (heads) share an image there.
        dim: axis of the tokens; the protected ones have size 1.
    """
    ones = size.new_ones(size.shape[0], 1)
    whole = torch.cat([ones.expand(-1, front), size, ones.expand(-1, back)], dim=1)
    if repeat > 1:
        whole = whole[:, None].expand(-1, repeat, -1).reshape(-1, whole.shape[1])
    if batch > dim:
        whole = whole.transpose(0, 1)
    for axis in range(rank):
        if axis not in (batch, dim):
            whole = whole.unsqueeze(axis)
    return whole


def add_log_size(logits: Tensor, size: Tensor) -> Tensor:
    """``logits + log size``, proportional attention (equation 1), in the dtype of ``logits``."""
    return logits + size.log().to(logits.dtype)


def key_bias(query: Tensor, size: Tensor, mask: Tensor | None = None) -> Tensor:
    """An additive attention mask in the dtype of ``query``: ``log size``, and the given mask."""
    bias = size.log().to(query.dtype)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.full_like(bias, float("-inf")))
    return mask + bias


def scale_by_size(x: Tensor, size: Tensor) -> Tensor:
    """Member values to group totals."""
    return (x * size).to(x.dtype)


def divide_by_size(x: Tensor, size: Tensor) -> Tensor:
    """Group totals to member values."""
    return (x / size).to(x.dtype)


def weighted_sum(
    x: Tensor,
    size: Tensor | None,
    dims: list[int],
    keepdim: bool,
    divisor: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum(size * x) / divisor``: a sum or a mean over the tokens of the original.

    The weights are divided first, so that a mean stays in the range of ``x``.
    """
    result = x.dtype if dtype is None else dtype
    wide = _wide(x.dtype)
    weight = 1.0 / divisor if size is None else (size / divisor).to(wide)
    return (x.to(wide) * weight).sum(dims, keepdim=keepdim).to(result)


def _whole(index: Tensor, front: int, back: int, total: int) -> Tensor:
    """Positions of a stream as positions of the whole axis, the protected ones included."""
    if front == 0 and back == 0:
        return index
    batch = index.shape[0]
    head = torch.arange(front, device=index.device).expand(batch, front)
    tail = torch.arange(total - back, total, device=index.device).expand(batch, back)
    return torch.cat([head, index + front, tail], dim=1)


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """``tokens[b, index[b]]`` for ``[B, N, ...]`` and ``[B, m]``."""
    return tokens.gather(1, _tail(index, tokens).expand(*index.shape, *tokens.shape[2:]))


def _tail(index: Tensor, x: Tensor) -> Tensor:
    """``[B, m]`` with the trailing axes of ``x`` as ones."""
    return index.reshape(*index.shape, *(1 for _ in range(x.dim() - 2)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
