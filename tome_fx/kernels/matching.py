"""Kernels of bipartite soft matching: unit metric in two halves, best partners, plan.

The mean over heads is read again by every tile of A, so it is made once; it is smaller than the
keys. Scores stay in registers, tile by tile. Ranks need every best score of an image: short streams
have them in one program, which makes the plan too; long ones write them and rank in another. An
image is never shared between two reductions, nothing is added atomically, so the bits are the same
each time and for each batch.

Scores have nearly the bits of float32: each number is the sum of two float16, ``high`` the nearest
and ``low`` what is left, 22 bits together, and three products of halves run on tensor cores at
twice the speed of those of TF32, whose operands would be split anew by every tile.
"""

from __future__ import annotations

from tome_fx.kernels.language import jit, tl


@jit
def unit_kernel(
    keys, high, low, stride_b, stride_h, stride_n, stride_c, front, count, heads, width,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``[B, H, N, C]`` to the mean over heads of ``count`` rows, of length 1024, in two halves.

    Of that length, so that ``low`` is far from the smallest float16. A row of zeros, and one with a
    NaN, becomes zeros.
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
    value = tl.where(sound, mean / tl.where(sound, norm, 1.0), 0.0) * 1024.0
    near = value.to(tl.float16)
    row = (image * count + rows)[:, None] * width
    tl.store(high + row + columns[None, :], near, mask=inside)
    rest = (value - near.to(tl.float32)).to(tl.float16)
    tl.store(low + row + columns[None, :], rest, mask=inside)


@jit
def write_plan(keep, src, dst, image, i, rank, partner, left, right, parity, r, ROWS: tl.constexpr):
    """The plan of one image: the ``r`` rows of A of the lowest rank merge."""
    merged = (i < left) & (rank < r)
    before = tl.cumsum(merged.to(tl.int32), axis=0) - merged.to(tl.int32)
    token = (2 * i + parity).to(tl.int64)
    stays = left - r
    kept = keep + image * (stays + right)
    tl.store(kept + i - before, token, mask=(i < left) & (rank >= r))
    tl.store(src + image * r + before, token, mask=merged)
    tl.store(dst + image * r + before, (partner + stays).to(tl.int64), mask=merged)
    for tile in range(0, right, ROWS):
        other = tile + i
        tl.store(kept + stays + other, (2 * other + 1 - parity).to(tl.int64), mask=other < right)


@jit
def ahead_of(theirs, j, own, i):
    """For each of ``own`` how many of ``theirs`` are better, or as good and earlier."""
    better = theirs[None, :] > own[:, None]
    tied = (theirs[None, :] == own[:, None]) & (j[None, :] < i[:, None])
    return tl.sum((better | tied).to(tl.int32), axis=1)


@jit
def pairs_kernel(
    high, low, best, partner, keep, src, dst, count, left, right, parity, r, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr,
    RANKS: tl.constexpr,
):  # fmt: skip
    """For each A row its largest score among the B rows, and the first B row that has it.

    ``RANKS``: one program has all A rows of an image, and writes the plan alone. ``WHOLE``: one
    step holds all channels. A score that is NaN counts as -2, less than any cosine.
    """
    # All loads are in this function: what another one loads and returns, and places depend on,
    # torch.compile takes for a place itself, that is written to, and copies it first.
    image = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    high += image * count * width
    low += image * count * width
    row = (2 * i + parity)[:, None] * width
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    first = tl.zeros((ROWS,), tl.int32)
    if WHOLE:
        c = tl.arange(0, STEP)[None, :]
        mine = (i < left)[:, None] & (c < width)
        a = tl.load(high + (row + c), mask=mine, other=0.0)
        a_low = tl.load(low + (row + c), mask=mine, other=0.0)
    for tile in range(0, right, COLUMNS):
        j = tile + tl.arange(0, COLUMNS)
        other = (2 * j + 1 - parity)[:, None] * width
        scores = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, STEP if WHOLE else width, STEP):
            c = (start + tl.arange(0, STEP))[None, :]
            if not WHOLE:
                mine = (i < left)[:, None] & (c < width)
                a = tl.load(high + (row + c), mask=mine, other=0.0)
                a_low = tl.load(low + (row + c), mask=mine, other=0.0)
            theirs = (j < right)[:, None] & (c < width)
            b = tl.load(high + (other + c), mask=theirs, other=0.0)
            b_low = tl.load(low + (other + c), mask=theirs, other=0.0)
            # The small ones first, so that they are not lost in the sum.
            scores = tl.dot(a_low, tl.trans(b), scores)
            scores = tl.dot(a, tl.trans(b_low), scores)
            scores = tl.dot(a, tl.trans(b), scores)
        scores = tl.where(scores == scores, scores, -2.0 * 1024 * 1024)
        scores = tl.where((j < right)[None, :], scores, float("-inf"))
        value = tl.max(scores, axis=1)
        place = tl.min(tl.where(scores == value[:, None], j[None, :], right), axis=1)
        # Not `>=`: among equals the first tile has the lowest index.
        better = value > top
        first = tl.where(better, place, first)
        top = tl.where(better, value, top)
    if RANKS:
        top = tl.where(i < left, top, float("-inf"))
        rank = ahead_of(top, i, top, i)
        write_plan(keep, src, dst, image, i, rank, first, left, right, parity, r, ROWS)
    else:
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
        rank += ahead_of(theirs, j, own, i)
    joins = tl.load(partner + image * left + i, mask=i < left, other=0)
    write_plan(keep, src, dst, image, i, rank, joins, left, right, parity, r, ROWS)
