"""Kernels of merging: one program makes one output row, with the size of its group.

A row gathers: its representative, then the merged tokens whose place it is, in their order. So two
programs never write to one place, and the bits are the same each time. Most rows have none to add,
and look for them in one comparison of all ``r`` places.
"""

from __future__ import annotations

from tome_fx.kernels.language import jit, tl


@jit
def token_row(x, branch, row, x_n, branch_n, inside, BRANCH: tl.constexpr):
    """A row of ``x`` in float32, with that of a residual branch added as the model rounds it."""
    value = tl.load(x + row * x_n, mask=inside, other=0.0)
    if BRANCH:
        more = tl.load(branch + row * branch_n, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
    return value.to(tl.float32)


@jit
def merged_row(
    x, branch, keep, src, dst, size, new_size, slot,
    x_b, x_n, x_c, branch_b, branch_n, branch_c, front, tokens, r, width,
    BRANCH: tl.constexpr, SIZED: tl.constexpr, MERGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The size-weighted mean of a slot's group as ``[WIDTH]`` in float32, and its size, stored too.

    ``tokens`` are those of the stream before the merge. Slots in front of it and behind it are
    protected: each is one row of ``x``.
    """
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    left = tokens - r
    inner = slot - front
    real = (inner >= 0) & (inner < left)
    kept = tl.load(keep + image * left + inner, mask=real, other=0)
    # Behind the stream all rows have moved up by the r that are gone.
    row = tl.where(real, kept + front, tl.where(inner < 0, slot, slot + r))
    one = tl.full((), 1.0, tl.float32)
    own = one
    i = tl.arange(0, MERGES)
    wanted = tl.where(real, inner, -2)  # nothing joins a protected row
    hits = tl.load(dst + image * r + i, mask=i < r, other=-1) == wanted
    if SIZED:
        own = tl.load(size + image * tokens + kept, mask=real, other=1.0)
        token = tl.load(src + image * r + i, mask=hits, other=0)
        theirs = tl.load(size + image * tokens + token, mask=hits, other=0.0)
    else:
        theirs = hits.to(tl.float32)
    total = own + tl.sum(theirs, axis=0)
    tl.store(new_size + image * left + inner, total, mask=real)
    # Weights of at most 1 before the sum, as in the portable form.
    share = tl.div_rn(one, total)
    x += image * x_b + columns.to(tl.int64) * x_c
    branch += image * branch_b + columns.to(tl.int64) * branch_c
    value = token_row(x, branch, row.to(tl.int64), x_n, branch_n, inside, BRANCH)
    sums = value * (share * own)
    rest = hits.to(tl.int32)
    for _ in range(tl.sum(rest, axis=0)):
        at = tl.min(tl.where(rest != 0, i, MERGES), axis=0)
        token_at = tl.load(src + image * r + at)
        weight = share
        if SIZED:
            weight = share * tl.load(size + image * tokens + token_at)
        value = token_row(x, branch, token_at + front, x_n, branch_n, inside, BRANCH)
        sums += value * weight
        rest = tl.where(i == at, 0, rest)
    return sums, total


@jit
def merge_kernel(
    x, keep, src, dst, size, merged, new_size, x_b, x_n, x_c, front, tokens, rows, r, width,
    SIZED: tl.constexpr, MERGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``[B, N, C]`` to ``[B, rows, C]``: each group by its size-weighted mean."""
    image = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    sums, _ = merged_row(
        x, x, keep, src, dst, size, new_size, slot,
        x_b, x_n, x_c, x_b, x_n, x_c, front, tokens, r, width,
        False, SIZED, MERGES, WIDTH,
    )  # fmt: skip
    place = (image * rows + slot) * width + columns
    tl.store(merged + place, sums.to(merged.dtype.element_ty), mask=columns < width)


@jit
def merge_norm_kernel(
    x, branch, keep, src, dst, size, merged, normed, new_size, level, weight, bias,
    x_b, x_n, x_c, branch_b, branch_n, branch_c, front, tokens, rows, r, width, eps,
    BRANCH: tl.constexpr, SIZED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    MERGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """:func:`merge_kernel`, the LayerNorm over the channels of what it made, and ``log2 size``.

    ``level`` ``[B, rows]``, with zeros for protected rows, is what attention adds to its logits.
    """
    image = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    sums, total = merged_row(
        x, branch, keep, src, dst, size, new_size, slot,
        x_b, x_n, x_c, branch_b, branch_n, branch_c, front, tokens, r, width,
        BRANCH, SIZED, MERGES, WIDTH,
    )  # fmt: skip
    place = (image * rows + slot) * width + columns
    # The norm is that of the rounded rows, which is what others read.
    value = sums.to(merged.dtype.element_ty)
    tl.store(merged + place, value, mask=inside)
    row = tl.where(inside, value.to(tl.float32), 0.0)
    centred = tl.where(inside, row - tl.sum(row, axis=0) / width, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    # Compilers pass numbers in float64, which would make all that they meet float64.
    result = tl.div_rn(centred, tl.sqrt_rn(variance + tl.full((), eps, tl.float32)))
    if WEIGHT:
        result = result * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        result = result + tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(level + image * rows + slot, tl.log2(total))
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=inside)
