"""A kernel of attention over keys that stand for several tokens (equation 1).

One pass over the keys with a running softmax (FlashAttention; Dao et al., 2022), and ``log size``
added to the logits in registers: a number for each key, where a mask is a number for each logit.
"""

from __future__ import annotations

from tome_fx.kernels.language import jit, tl


@jit
def read(at, there, held, WHOLE: tl.constexpr, EVEN: tl.constexpr):
    """A block of keys or values, with zeros for those, and for channels, that are not there."""
    if WHOLE and EVEN:
        return tl.load(at)
    elif WHOLE:  # noqa: RET505 - the kernel's language has no early return
        return tl.load(at, mask=held, other=0.0)
    elif EVEN:
        return tl.load(at, mask=there[:, None], other=0.0)
    else:
        return tl.load(at, mask=there[:, None] & held, other=0.0)


@jit
def key_block(
    q, q_more, sums, sums_more, top, total, key, key_at, key_more_at, value, value_at,
    value_more_at, bias, there, held, held_more, valued, valued_more, scale,
    WHOLE: tl.constexpr, EVEN: tl.constexpr, REST_EVEN: tl.constexpr,
    REST: tl.constexpr, VALUE_REST: tl.constexpr,
):  # fmt: skip
    """One block of keys and values: the running sums with it.

    ``key``, ``value`` and ``bias`` are where the block begins. ``WHOLE``: all its keys are there;
    ``EVEN``: all channels of the first extents, ``REST_EVEN``: of the others.
    """
    k = read(key + key_at, there, held, WHOLE, EVEN)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    if REST:
        k_more = read(key + key_more_at, there, held_more, WHOLE, REST_EVEN)
        logits = tl.dot(q_more, tl.trans(k_more), logits, input_precision="ieee")
    shift = tl.load(bias) if WHOLE else tl.load(bias, mask=there, other=float("-inf"))
    logits = logits * scale + shift[None, :]
    higher = tl.maximum(top, tl.max(logits, axis=1))
    # Keys of size 0 count nothing, a block of nothing else neither.
    level = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp2(logits - level[:, None])
    before = tl.exp2(top - level)
    total = total * before + tl.sum(weight, axis=1)
    weight = weight.to(q.dtype)
    v = read(value + value_at, there, valued, WHOLE, EVEN)
    sums = tl.dot(weight, v, sums * before[:, None], input_precision="ieee")
    if VALUE_REST:
        v_more = read(value + value_more_at, there, valued_more, WHOLE, REST_EVEN)
        sums_more = tl.dot(weight, v_more, sums_more * before[:, None], input_precision="ieee")
    return sums, sums_more, higher, total


@jit
def attend_kernel(
    query, key, value, bias, result,
    query_b, query_h, query_n, query_c, key_b, key_h, key_n, key_c,
    value_b, value_h, value_n, value_c, bias_b, result_b, result_h, result_n,
    queries, length, heads, group, width, value_width, factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
    VALUE_FIRST: tl.constexpr, VALUE_REST: tl.constexpr, EVEN: tl.constexpr,
    REST_EVEN: tl.constexpr,
):  # fmt: skip
    """``softmax(scale q k^T + bias) v`` for ``ROWS`` queries of one head.

    Channels are those of two blocks, since an extent is a power of two: 96 are 64 and 32. ``EVEN``
    and ``REST_EVEN`` say that they fill the first and the other. ``group`` heads share their keys.
    All powers are of 2: ``factor`` is the scale, and ``bias`` ``[B, S]`` the logarithm, to that
    base.
    """
    blocks = tl.cdiv(queries, ROWS)
    head = tl.program_id(0) // blocks
    image, head = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    first = (tl.program_id(0) % blocks) * ROWS
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    c, e = tl.arange(0, FIRST), tl.arange(0, VALUE_FIRST)
    c_more = FIRST + tl.arange(0, max(REST, 1))
    e_more = VALUE_FIRST + tl.arange(0, max(VALUE_REST, 1))
    held, held_more = (c < width)[None, :], (c_more < width)[None, :]
    valued, valued_more = (e < value_width)[None, :], (e_more < value_width)[None, :]
    real = (first + i < queries)[:, None]
    # What differs within a block is small; what is large is one number for all of it. Pointers in
    # 64 bits for each element would fill the registers.
    query += image * query_b + head * query_h + tl.full((), first, tl.int64) * query_n
    row = i[:, None] * query_n
    q = tl.load(query + (row + c[None, :] * query_c), mask=real & held, other=0.0)
    q_more = q
    if REST:
        more = row + c_more[None, :] * query_c
        q_more = tl.load(query + more, mask=real & held_more, other=0.0)
    sums = tl.zeros((ROWS, VALUE_FIRST), tl.float32)
    sums_more = tl.zeros((ROWS, max(VALUE_REST, 1)), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    # Compilers pass numbers in float64, which would make all that they meet float64.
    scale = tl.full((), factor, tl.float32)
    shared = head // group
    key += image * key_b + shared * key_h
    value += image * value_b + shared * value_h
    bias += image * bias_b
    key_at = j[:, None] * key_n + c[None, :] * key_c
    key_more_at = j[:, None] * key_n + c_more[None, :] * key_c
    value_at = j[:, None] * value_n + e[None, :] * value_c
    value_more_at = j[:, None] * value_n + e_more[None, :] * value_c
    whole = length // COLUMNS * COLUMNS
    for start in range(0, whole, COLUMNS):
        at = tl.full((), start, tl.int64)
        sums, sums_more, top, total = key_block(
            q, q_more, sums, sums_more, top, total, key + at * key_n, key_at, key_more_at,
            value + at * value_n, value_at, value_more_at, bias + (start + j), start + j < length,
            held, held_more, valued, valued_more, scale, True, EVEN, REST_EVEN, REST, VALUE_REST,
        )  # fmt: skip
    # One block at most: nothing to fetch ahead.
    for start in tl.range(whole, length, COLUMNS, num_stages=1):
        at = tl.full((), start, tl.int64)
        sums, sums_more, top, total = key_block(
            q, q_more, sums, sums_more, top, total, key + at * key_n, key_at, key_more_at,
            value + at * value_n, value_at, value_more_at, bias + (start + j), start + j < length,
            held, held_more, valued, valued_more, scale, False, EVEN, REST_EVEN, REST, VALUE_REST,
        )  # fmt: skip
    result += image * result_b + head * result_h + tl.full((), first, tl.int64) * result_n
    row = i[:, None] * result_n
    kind = result.dtype.element_ty
    tl.store(result + (row + e[None, :]), (sums / total[:, None]).to(kind), mask=real & valued)
    if VALUE_REST:
        found = (sums_more / total[:, None]).to(kind)
        tl.store(result + (row + e_more[None, :]), found, mask=real & valued_more)
