"""Fewer, larger merges, and token counts that suit the hardware.

Both start from the plain plan, a merge at each layer as ``r`` asks. Its numbers of tokens are the
aim; ``every`` merges at one layer of each group, ``align`` takes a multiple near to the aim. What
one merge leaves over or takes too much is part of what the next one sees, so nothing adds up.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Align: TypeAlias = int | Literal["auto"]


@dataclass(frozen=True)
class Merge:
    """One layer of a plan: tokens asked of it and removed by it, of ``before`` unprotected ones."""

    before: int
    asked: int
    removed: int


# Tensor cores read rows of 16 bytes. Elsewhere nothing was measured to gain, and nothing is moved.
AUTO_ALIGN = {("cuda", torch.float16): 8, ("cuda", torch.bfloat16): 8}


def auto_align(device: str, dtype: torch.dtype) -> int:
    """What ``align="auto"`` stands for where attention runs in ``dtype`` on a kind of device."""
    return AUTO_ALIGN.get((device, dtype), 1)


def plain(
    wanted: Sequence[int], tokens: int, share: float | None = None, idle: Container[int] = ()
) -> tuple[Merge, ...]:
    """A merge at each layer, of ``wanted`` tokens or of a ``share`` of what reaches it, clamped.

    ``idle``: layers that are asked for nothing.
    """
    merges = []
    for layer, want in enumerate(wanted):
        asked = want if share is None else int(share * tokens)
        asked = 0 if layer in idle else asked
        merges.append(Merge(tokens, asked, clamp(asked, tokens)))
        tokens -= merges[-1].removed
    return tuple(merges)


def clamp(want: int, tokens: int) -> int:
    """At most half of the unprotected tokens merge at one layer: A has no more (section 3.2)."""
    return min(want, tokens // 2)


def grouped(
    ideal: Sequence[Merge], every: int = 1, align: int = 1, protected: int = 0
) -> tuple[Merge, ...]:
    """``ideal`` with one merge in each ``every`` layers and aligned numbers of tokens.

    Of the layers of a group, and of the multiples next to the aim, those are taken that keep the
    sum of the tokens over all layers so far, and so the cost, nearest to that of ``ideal``. A group
    that is asked for nothing removes nothing; none removes more than half of its tokens.

    Args:
        ideal: one merge a layer, as from :func:`plain`.
        every: layers in a group; the last one may be shorter.
        align: unprotected and protected tokens behind a merge are together a multiple of it, where
            one lies between half and all of the tokens.
        protected: tokens that share the axis.
    """
    if every == align == 1:
        return tuple(ideal)
    now, debt = ideal[0].before if ideal else 0, 0
    merges: list[Merge] = []
    for start in range(0, len(ideal), every):
        group = ideal[start : start + every]
        aims = [merge.before - merge.removed for merge in group]
        asked = max(0, now - aims[-1]) + sum(merge.asked - merge.removed for merge in group)
        choices = [(at, left) for left in _lefts(now, group, align, protected)
                   for at in range(len(group))]  # fmt: skip

        def off(choice: tuple[int, int], now: int = now, debt: int = debt,
                aims: list[int] = aims) -> tuple[int, int, int]:  # fmt: skip
            at, left = choice
            spent = sum((now if i < at else left) - aim for i, aim in enumerate(aims))
            return abs(debt + spent), abs(left - aims[-1]), at

        at, left = min(choices, key=off)
        for i, aim in enumerate(aims):
            here = i == at and left < now
            merges.append(Merge(now, asked if here else 0, now - left if here else 0))
            now = left if i == at else now
            debt += now - aim
    return tuple(merges)


def _lefts(now: int, group: Sequence[Merge], align: int, protected: int) -> list[int]:
    """The numbers of tokens that a group may leave, of ``now``."""
    if not any(merge.asked for merge in group):
        return [now]
    least = now - now // 2
    aim = min(max(group[-1].before - group[-1].removed, least), now)
    down, up = aim - (aim + protected) % align, aim + -(aim + protected) % align
    lefts = {left for left in (down, up) if least <= left <= now}
    if not lefts:
        up = least + -(least + protected) % align
        lefts = {up} if up <= now else {aim}
    if now - aim < align:
        lefts.add(now)  # wait: the next merge takes these few with its own
    return sorted(lefts)
