"""The paper's algorithm on one sequence, written out token by token in float64.

Each layer looks at the *whole* sequence, the protected prefix tokens counted as positions but
never chosen:

1. the metric is the mean over heads of the keys, at unit length (a zero vector stays zero);
2. A is the tokens at even positions, B those at odd positions, without protected ones;
3. each A token points to its most similar B token, the r most similar pairs merge, and every
   tie goes to the lowest index;
4. values merge by size-weighted mean, sizes add;
5. the new order is the protected tokens, the survivors of A in their order, then B;
6. every softmax over keys adds the logarithm of the key's size.

A layer with r = 0 leaves the sequence as it is, order included.

Letters: ``n`` tokens of the current sequence, ``C`` channels, ``D`` head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tokens:
    """One image's sequence: values ``[n, C]``, the size and the patches of each token."""

    x: Tensor
    size: list[float]
    members: list[list[int]]
    protected: int


@dataclass
class Run:
    """Settings of one run over one image, and what it found on the way."""

    schedule: Sequence[int]
    prop_attn: bool
    sizes: bool
    maps: list[list[int]] = field(default_factory=list)
    margin: float = math.inf


def unit(metric: Tensor) -> Tensor:
    """Rows of ``[n, D]`` at unit length; a zero row stays zero."""
    length = (metric * metric).sum(dim=1, keepdim=True).sqrt()
    return metric / torch.where(length > 0, length, 1.0)


def match(similarity: Tensor, r: int, protected: int) -> tuple[list[tuple[int, int]], float]:
    """The pairs ``(a, b)`` of positions that merge, and the margin that decided them.

    ``similarity`` is ``[n, n]`` over the whole sequence; the first ``protected`` positions are
    never chosen, and r is clipped to half of the others.
    """
    n, rows = similarity.shape[0], similarity.tolist()
    r = min(r, (n - protected) // 2)
    group_a = [i for i in range(protected, n) if i % 2 == 0]
    group_b = [i for i in range(protected, n) if i % 2 == 1]
    if r == 0:
        return [], math.inf
    best: dict[int, tuple[float, int]] = {}
    gap: dict[int, float] = {}
    for a in group_a:
        scores = [rows[a][b] for b in group_b]
        top = max(scores)
        best[a] = (top, group_b[scores.index(top)])
        others = sorted(scores)[:-1]
        gap[a] = top - others[-1] if others else math.inf
    order = sorted(group_a, key=lambda a: (-best[a][0], a))
    chosen = order[:r]
    margin = min(gap[a] for a in chosen)
    if r < len(order):
        margin = min(margin, best[order[r - 1]][0] - best[order[r]][0])
    return [(a, best[a][1]) for a in chosen], margin


def merge(tokens: Tokens, pairs: list[tuple[int, int]], sizes: bool) -> Tokens:
    """The sequence after the pairs merged: prefix, survivors of A, then B."""
    n = tokens.x.shape[0]
    gone = {a for a, _ in pairs}
    prefix = list(range(tokens.protected))
    survivors = [i for i in range(tokens.protected, n) if i % 2 == 0 and i not in gone]
    targets = [i for i in range(tokens.protected, n) if i % 2 == 1]
    values, size, members = [], [], []
    for position in prefix + survivors + targets:
        group = [position] + [a for a, b in pairs if b == position]
        weights = [tokens.size[i] if sizes else 1.0 for i in group]
        total = sum(weights)
        value = torch.zeros_like(tokens.x[position])
        for weight, i in zip(weights, group, strict=True):
            value = value + (weight / total) * tokens.x[i]
        values.append(value)
        size.append(sum(tokens.size[i] for i in group))
        members.append(sorted(patch for i in group for patch in tokens.members[i]))
    return Tokens(torch.stack(values), size, members, tokens.protected)


def merge_layer(tokens: Tokens, metrics: list[Tensor], layer: int, run: Run) -> Tokens:
    """Match on the mean similarity of the layer's attentions, merge, note where patches went."""
    r = run.schedule[layer]
    similarity = sum(unit(metric) @ unit(metric).T for metric in metrics) / len(metrics)
    pairs, margin = match(similarity, r, tokens.protected)
    run.margin = min(run.margin, margin)
    tokens = merge(tokens, pairs, run.sizes) if pairs else tokens
    slots: dict[int, int] = {}
    for slot, patches in enumerate(tokens.members[tokens.protected :]):
        slots.update(dict.fromkeys(patches, slot))
    run.maps.append([slots[patch] for patch in sorted(slots)])
    return tokens


def log_size(tokens: Tokens, run: Run) -> Tensor:
    """What proportional attention adds to the logits of each key, ``[n]``."""
    weighted = run.prop_attn and run.sizes
    return torch.tensor(
        [math.log(s) if weighted else 0.0 for s in tokens.size], dtype=torch.float64
    )


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor) -> Tensor:
    """One head's ``[n, D]`` queries over ``[m, D]`` keys; ``bias`` is ``[m]``."""
    logits = (q @ k.T) * scale + bias
    weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
    return (weights / weights.sum(dim=1, keepdim=True)) @ v


def mean(x: Tensor, size: list[float], run: Run) -> Tensor:
    """The mean over the patches that the tokens of ``x`` ``[n, C]`` stand for."""
    weights = torch.tensor(size if run.sizes else [1.0] * len(size), dtype=torch.float64)
    return (weights[:, None] * x).sum(dim=0) / weights.sum()


def macs(
    *,
    dim: int,
    tokens: int,
    patch_volume: int,
    patches: int,
    schedule: Sequence[int],
    classes: int,
    mlp_ratio: float = 4.0,
) -> int:
    """Multiply-accumulates of one image through a plain ViT.

    The formula is ``3 p^2 d Np + sum(4 n d^2 + 2 n^2 d + 2 ratio n' d^2) + d C`` with
    ``n' = n - r``; ``patch_volume`` is ``3 p^2`` (times the frames of a video patch). The r of
    each layer is clipped as the paper does only by the caller.
    """
    total = patch_volume * dim * patches + dim * classes
    n = tokens
    for r in schedule:
        total += 4 * n * dim**2 + 2 * n**2 * dim
        n -= r
        total += int(2 * mlp_ratio * n * dim**2)
    return total
