"""Pieces of a row that are as long as each other, matched at once.

Windows of an image, or images packed in a row, ``W`` of them in each of ``B`` rows: as ``B * W``
images of their own they take one match, and the plans found so make one of the row.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tome_fx.ops.plan import MergePlan


def stretches(x: Tensor, starts: list[int], length: int) -> Tensor:
    """Stretches of the tokens of ``x`` as images of their own; a view where they are neighbours.

    Args:
        x: ``[B, H, N, C]``.
        starts: where each of the ``W`` stretches begins, in order.
        length: the tokens ``n`` of each.

    Returns:
        ``[B * W, H, n, C]``.
    """
    row = []
    for start, count in _runs(starts, length):
        part = x[:, :, start : start + count * length]
        row.append(part.reshape(*x.shape[:2], count, length, x.shape[3]))
    return _joined(row, 2).transpose(1, 2).flatten(0, 1)


def own_plan(plan: MergePlan, place: int, of: int) -> MergePlan:
    """The plan of one of ``of`` pieces that were matched at once, ``[B, ...]``."""
    return MergePlan(*(_by_row(part, of)[:, place] for part in plan))


def join_alike(
    plans: list[MergePlan], places: list[list[int]], before: list[int], after: list[int]
) -> MergePlan:
    """The plans of pieces that were matched at once as one of the row that they make up.

    Args:
        plans: each of W pieces of every row, ``[B * W, ...]``.
        places: which pieces of the row these are, in order. A piece that is in none stays.
        before, after: the tokens of each piece of the row before and after the merge.

    Returns:
        A plan for ``sum(before)`` tokens; ``keep`` is in the order of the row.
    """
    old, new = (list(accumulate(counts, initial=0)) for counts in (before, after))
    keep, src, dst = [], [], []
    for plan, own in zip(plans, places, strict=True):
        kept, gone, slots = (_by_row(part, len(own)) for part in plan)
        begin = _column([old[place] for place in own], kept.device)
        keep.append(kept + begin)
        src.append((gone + begin).flatten(1))
        dst.append((slots + _column([new[place] for place in own], kept.device)).flatten(1))
    row = []
    for group, first, count in _in_order(places, len(before)):
        if group is None:
            stays = torch.arange(old[first], old[first + count], device=keep[0].device)
            row.append(stays.expand(keep[0].shape[0], -1))
        else:
            row.append(keep[group][:, first : first + count].flatten(1))
    return MergePlan(_joined(row, 1), _joined(src, 1), _joined(dst, 1))


def _by_row(part: Tensor, pieces: int) -> Tensor:
    """``[B * W, n]`` as ``[B, W, n]``."""
    return part.reshape(-1, pieces, part.shape[1])


def _in_order(places: list[list[int]], pieces: int) -> list[tuple[int | None, int, int]]:
    """The row as runs: a group with its first member and how many; None for pieces that stay."""
    owner = {place: (g, i) for g, own in enumerate(places) for i, place in enumerate(own)}
    runs: list[tuple[int | None, int, int]] = []
    for place in range(pieces):
        group, member = owner.get(place, (None, place))
        last = runs[-1] if runs else None
        if last is not None and last[0] == group and last[1] + last[2] == member:
            runs[-1] = (group, last[1], last[2] + 1)
        else:
            runs.append((group, member, 1))
    return runs


def _runs(numbers: list[int], step: int) -> list[tuple[int, int]]:
    """Numbers as runs that rise by ``step``: the first of each, and how many."""
    breaks = [i for i, (one, two) in enumerate(pairwise(numbers), 1) if two - one != step]
    return [(numbers[i], j - i) for i, j in pairwise([0, *breaks, len(numbers)])]


def _column(numbers: list[int], device: torch.device) -> Tensor:
    """Numbers, made without a copy from the host: ``[n, 1]``."""
    step = max(1, min((two - one for one, two in pairwise(numbers)), default=1))
    parts = [
        torch.arange(first, first + count * step, step, device=device)
        for first, count in _runs(numbers, step)
    ]
    return _joined(parts, 0)[:, None]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
