"""Kernels of merging: one program makes one output row, with the size of its group.

A row gathers: its representative, then the merged tokens whose place it is, in their order. So two
programs never write to one place, and the bits are the same each time. Most rows have none to add,
and look for them in one comparison of all ``r`` places.

Channels are those of one block or two, since an extent is a power of two: 768 are 512 and 256.
``EVEN`` says that they fill them. Instructions weigh as much as bytes here: no mask where none is
needed, and one division for a row.
"""

from __future__ import annotations

from tome_fx.kernels.language import jit, tl


@jit
def group_of(
    keep, src, dst, size, new_size, slot, front, tokens, r,
    SIZED: tl.constexpr, MERGES: tl.constexpr,
):  # fmt: skip
    """What a slot gathers; stores the size of its group.

    ``tokens`` are those of the stream before the merge. Slots in front of it and behind it are
    protected: each is one row of its own.

    Returns the representative's row and its weight, which merged tokens join, what one token
    weighs, and the size.
    """
    image = tl.program_id(0).to(tl.int64)
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
    return row.to(tl.int64), share * own, hits.to(tl.int32), share, total


@jit
def token_row(x, branch, at, branch_at, inside, BRANCH: tl.constexpr, EVEN: tl.constexpr):
    """Some of a row of ``x`` in float32, with a residual branch added as the model rounds it."""
    # Zeros beside the row, since sums go over the whole block.
    value = tl.load(x + at) if EVEN else tl.load(x + at, mask=inside, other=0.0)
    if BRANCH:
        place = branch + branch_at
        add = tl.load(place) if EVEN else tl.load(place, mask=inside, other=0.0)
        value = (value.to(tl.float32) + add.to(tl.float32)).to(x.dtype.element_ty)
    return value.to(tl.float32)


@jit
def put(to, value, columns, width, EVEN: tl.constexpr):
    """Store some channels of a row that begins at ``to``."""
    value = value.to(to.dtype.element_ty)
    if EVEN:
        tl.store(to + columns, value)
    else:
        tl.store(to + columns, value, mask=columns < width)


@jit
def merge_channels(
    merged, x, branch, src, size, row, own, hits, share, columns,
    x_n, x_c, branch_n, branch_c, front, tokens, r, width,
    BRANCH: tl.constexpr, SIZED: tl.constexpr, MERGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Store the size-weighted mean of a group in some channels, and return it as it was rounded.

    ``x`` and ``branch`` are those of an image, ``merged`` is where the row begins.
    """
    image = tl.program_id(0).to(tl.int64)
    inside = columns < width
    i = tl.arange(0, MERGES)
    across, aside = columns.to(tl.int64) * x_c, columns.to(tl.int64) * branch_c
    value = token_row(x + row * x_n, branch + row * branch_n, across, aside, inside, BRANCH, EVEN)
    sums = value * own
    rest = hits
    for _ in range(tl.sum(hits, axis=0)):
        at = tl.min(tl.where(rest != 0, i, MERGES), axis=0)
        token = tl.load(src + image * r + at)
        weight = share
        if SIZED:
            weight = share * tl.load(size + image * tokens + token)
        from_x, from_branch = x + (token + front) * x_n, branch + (token + front) * branch_n
        sums += token_row(from_x, from_branch, across, aside, inside, BRANCH, EVEN) * weight
        rest = tl.where(i == at, 0, rest)
    put(merged, sums, columns, width, EVEN)
    return sums.to(merged.dtype.element_ty).to(tl.float32)


@jit
def merge_kernel(
    x, keep, src, dst, size, merged, new_size, x_b, x_n, x_c, front, tokens, rows, r, width,
    SIZED: tl.constexpr, MERGES: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """``[B, N, C]`` to ``[B, rows, C]``: each group by its size-weighted mean."""
    image = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    row, own, hits, share, _ = group_of(
        keep, src, dst, size, new_size, slot, front, tokens, r, SIZED, MERGES
    )
    x += image * x_b
    merged += (image * rows + slot) * width
    columns = tl.arange(0, FIRST)
    merge_channels(
        merged, x, x, src, size, row, own, hits, share, columns, x_n, x_c, x_n, x_c,
        front, tokens, r, width, False, SIZED, MERGES, EVEN,
    )  # fmt: skip
    if REST:
        merge_channels(
            merged, x, x, src, size, row, own, hits, share, FIRST + tl.arange(0, REST),
            x_n, x_c, x_n, x_c, front, tokens, r, width, False, SIZED, MERGES, EVEN,
        )  # fmt: skip


@jit
def centre(value, mean, columns, width, EVEN: tl.constexpr):
    """A row without its mean, and zeros beside it."""
    return value - mean if EVEN else tl.where(columns < width, value - mean, 0.0)


@jit
def scaled(value, weight, bias, columns, width,
           WEIGHT: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """``value weight + bias``."""
    if WEIGHT:
        by = tl.load(weight + columns) if EVEN else tl.load(weight + columns, mask=columns < width)
        value = value * by.to(tl.float32)
    if BIAS:
        by = tl.load(bias + columns) if EVEN else tl.load(bias + columns, mask=columns < width)
        value = value + by.to(tl.float32)
    return value


@jit
def merge_norm_kernel(
    x, branch, keep, src, dst, size, merged, normed, new_size, level, weight, bias,
    x_b, x_n, x_c, branch_b, branch_n, branch_c, front, tokens, rows, r, width, eps,
    BRANCH: tl.constexpr, SIZED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    MERGES: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """:func:`merge_kernel`, the LayerNorm over the channels of what it made, and ``log2 size``.

    ``level`` ``[B, rows]``, with zeros for protected rows, is what attention adds to its logits.
    """
    image = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1)
    row, own, hits, share, total = group_of(
        keep, src, dst, size, new_size, slot, front, tokens, r, SIZED, MERGES
    )
    tl.store(level + image * rows + slot, tl.log2(total))
    x += image * x_b
    branch += image * branch_b
    merged += (image * rows + slot) * width
    normed += (image * rows + slot) * width
    columns = tl.arange(0, FIRST)
    # The norm is that of the rounded rows, which is what others read.
    value = merge_channels(
        merged, x, branch, src, size, row, own, hits, share, columns, x_n, x_c, branch_n, branch_c,
        front, tokens, r, width, BRANCH, SIZED, MERGES, EVEN,
    )  # fmt: skip
    mean = tl.sum(value, axis=0)
    others = FIRST + tl.arange(0, max(REST, 1))
    more = value
    if REST:
        more = merge_channels(
            merged, x, branch, src, size, row, own, hits, share, others,
            x_n, x_c, branch_n, branch_c, front, tokens, r, width, BRANCH, SIZED, MERGES, EVEN,
        )  # fmt: skip
        mean += tl.sum(more, axis=0)
    mean = mean / width
    value = centre(value, mean, columns, width, EVEN)
    variance = tl.sum(value * value, axis=0)
    if REST:
        more = centre(more, mean, others, width, EVEN)
        variance += tl.sum(more * more, axis=0)
    # Compilers pass numbers in float64, which would make all that they meet float64.
    deviation = tl.sqrt_rn(variance / width + tl.full((), eps, tl.float32))
    factor = tl.div_rn(tl.full((), 1.0, tl.float32), deviation)
    result = scaled(value * factor, weight, bias, columns, width, WEIGHT, BIAS, EVEN)
    put(normed, result, columns, width, EVEN)
    if REST:
        result = scaled(more * factor, weight, bias, others, width, WEIGHT, BIAS, EVEN)
        put(normed, result, others, width, EVEN)
