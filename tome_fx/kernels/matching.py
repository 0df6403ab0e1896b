"""Kernels of bipartite soft matching: unit metric, best partners, plan.

Three kernels and not one. The mean over heads is read again by every tile of A, so it is made once;
it is smaller than the keys. Scores stay in registers, tile by tile. Ranks need every best score of
an image. An image is never shared between two reductions, nothing is added atomically, so the bits
are the same each time and for each batch.
"""

from __future__ import annotations

from tome_fx.kernels.language import jit, tl


@jit
def unit_kernel(
    keys, unit, stride_b, stride_h, stride_n, stride_c, front, count, heads, width,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``[B, H, N, C]`` to the mean over heads of ``count`` rows, of unit length, in float32.

    A row of zeros, and one with a NaN, becomes zeros.
    """
    image = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows < count)[:, None] & (columns < width)[None, :]
    across = (rows + front).to(tl.int64)[:, None] * stride_n
    place = keys + image * stride_b + across + columns.to(tl.int64)[None, :] * stride_c
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for _ in range(heads):
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        place += stride_h
    mean = total / heads
    norm = tl.sqrt_rn(tl.sum(mean * mean, axis=1))[:, None]
    # Not `norm == 0`: a NaN has to become zeros too.
    sound = norm > 0
    value = tl.where(sound, mean / tl.where(sound, norm, 1.0), 0.0)
    row = (image * count + rows)[:, None] * width
    tl.store(unit + row + columns[None, :], value, mask=inside)


@jit
def best_kernel(
    unit, best, partner, count, left, right, parity, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """For each A row its largest score among the B rows, and the first B row that has it.

    A score that is NaN counts as -2, less than any cosine.
    """
    image = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start = unit + image * count * width
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    first = tl.zeros((ROWS,), tl.int32)
    for tile in range(0, right, COLUMNS):
        j = tile + tl.arange(0, COLUMNS)
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for column in range(0, width, STEP):
            c = column + tl.arange(0, STEP)
            a = tl.load(
                start + (2 * i + parity)[:, None] * width + c[None, :],
                mask=(i < left)[:, None] & (c < width)[None, :],
                other=0.0,
            )
            b = tl.load(
                start + (2 * j + 1 - parity)[None, :] * width + c[:, None],
                mask=(j < right)[None, :] & (c < width)[:, None],
                other=0.0,
            )
            # Tensor cores, three products that make up nearly all bits of a float32.
            scores = tl.dot(a, b, scores, input_precision="tf32x3")
        scores = tl.where(scores == scores, scores, -2.0)
        scores = tl.where((j < right)[None, :], scores, float("-inf"))
        value = tl.max(scores, axis=1)
        place = tl.min(tl.where(scores == value[:, None], j[None, :], right), axis=1)
        # Not `>=`: among equals the first tile has the lowest index.
        better = value > top
        first = tl.where(better, place, first)
        top = tl.where(better, value, top)
    tl.store(best + image * left + i, top, mask=i < left)
    tl.store(partner + image * left + i, first, mask=i < left)


@jit
def plan_kernel(
    best, partner, keep, src, dst, left, right, parity, r,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The plan of one image from its best pairs: the ``r`` of the lowest rank merge.

    The rank of a pair is how many are better, or as good and earlier: see the portable ``match``.
    """
    image = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, ROWS)
    row = best + image * left
    own = tl.load(row + i, mask=i < left, other=float("-inf"))
    rank = tl.zeros((ROWS,), tl.int32)
    for tile in range(0, left, STEP):
        j = tile + tl.arange(0, STEP)
        theirs = tl.load(row + j, mask=j < left, other=float("-inf"))
        ahead = theirs[None, :] > own[:, None]
        tied = (theirs[None, :] == own[:, None]) & (j[None, :] < i[:, None])
        rank += tl.sum((ahead | tied).to(tl.int32), axis=1)
    merged = (i < left) & (rank < r)
    before = tl.cumsum(merged.to(tl.int32), axis=0) - merged.to(tl.int32)
    token = (2 * i + parity).to(tl.int64)
    stays = left - r
    kept = keep + image * (stays + right)
    tl.store(kept + i - before, token, mask=(i < left) & (rank >= r))
    tl.store(src + image * r + before, token, mask=merged)
    joins = tl.load(partner + image * left + i, mask=merged, other=0) + stays
    tl.store(dst + image * r + before, joins.to(tl.int64), mask=merged)
    for tile in range(0, right, ROWS):
        other = tile + i
        tl.store(kept + stays + other, (2 * other + 1 - parity).to(tl.int64), mask=other < right)
