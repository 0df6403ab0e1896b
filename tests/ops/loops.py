"""What the tensor functions do, one number at a time, and how to draw their inputs."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st
from torch import Tensor

from tome_fx.ops import MergePlan, match


def looped_match(scores: Tensor, r: int, parity: int) -> tuple[list[int], list[int], list[int]]:
    """``keep``, ``src``, ``dst`` of one image from ``[|A|, |B|]``."""
    a, b = scores.shape
    table = scores.tolist()
    partner = [line.index(max(line)) for line in table]
    ranked = sorted(range(a), key=lambda i: (-max(table[i]), i))
    merged = sorted(ranked[:r])
    survivors = [i for i in range(a) if i not in merged]
    keep = [2 * i + parity for i in survivors] + [2 * j + 1 - parity for j in range(b)]
    return keep, [2 * i + parity for i in merged], [len(survivors) + partner[i] for i in merged]


def groups(plan: MergePlan) -> list[list[list[int]]]:
    """For each image and output slot its members, the representative first."""
    result = []
    for keep, src, dst in zip(
        plan.keep.tolist(), plan.src.tolist(), plan.dst.tolist(), strict=True
    ):
        slots = [[token] for token in keep]
        for token, slot in zip(src, dst, strict=True):
            slots[slot].append(token)
        result.append(slots)
    return result


def looped_size(plan: MergePlan, size: Tensor | None) -> Tensor:
    """Group sizes after the merge, in float64."""
    rows = [
        [sum(1.0 if size is None else float(size[b, t]) for t in members) for members in slots]
        for b, slots in enumerate(groups(plan))
    ]
    return torch.tensor(rows, dtype=torch.float64)


def looped_merge(
    x: Tensor, plan: MergePlan, size: Tensor | None, front: int, back: int, total: bool = False
) -> Tensor:
    """Weighted means (or sums) over the groups of ``[B, N, C]``, in float64."""
    x = x.double()
    images = []
    for b, slots in enumerate(groups(plan)):
        rows = [x[b, i] for i in range(front)]
        for members in slots:
            weights = [1.0 if size is None or total else float(size[b, token]) for token in members]
            value = sum(
                (w * x[b, front + token] for w, token in zip(weights, members, strict=True)),
                torch.zeros_like(x[b, 0]),
            )
            rows.append(value if total else value / sum(weights))
        rows += [x[b, x.shape[1] - back + i] for i in range(back)]
        images.append(torch.stack(rows))
    return torch.stack(images)


def looped_take(x: Tensor, index: Tensor, front: int, back: int) -> Tensor:
    """Rows of the stream of ``[B, N, ...]``, the protected ones as they are."""
    images = []
    for b, row in enumerate(index.tolist()):
        rows = [x[b, i] for i in range(front)]
        rows += [x[b, front + i] for i in row]
        rows += [x[b, x.shape[1] - back + i] for i in range(back)]
        images.append(torch.stack(rows))
    return torch.stack(images)


@st.composite
def plans(draw: st.DrawFn, least: int = 2) -> tuple[MergePlan, int]:
    """A plan of up to three images, and the number of tokens before it."""
    n, batch, parity = (
        draw(st.integers(least, 11)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 1)),
    )
    a = len(range(parity, n, 2))
    r = draw(st.integers(0, a if n - a else 0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scores = torch.rand(batch, a, n - a, generator=generator, dtype=torch.float64)
    return match(scores, r, parity), n


@st.composite
def tokens(draw: st.DrawFn, least: int = 2) -> tuple[Tensor, Tensor | None, MergePlan, int, int]:
    """``x [B, front + n + back, 3]`` in float64, sizes or None, a plan, ``front`` and ``back``."""
    plan, n = draw(plans(least))
    rng = random.Random(draw(st.integers(0, 2**20)))
    front, back = rng.randint(0, 2), rng.randint(0, 2)
    batch = plan.keep.shape[0]
    x = torch.randn(batch, front + n + back, 3, dtype=torch.float64)
    size = torch.randint(1, 9, (batch, n)).double() if rng.random() < 0.7 else None
    return x, size, plan, front, back
