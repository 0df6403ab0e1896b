"""What is computed chunk by chunk of its queries: by which functions, and of which stretches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

import tome_fx
from tests.profiles import examples
from tests.rules.common import TINY, N, Projected, heads, joined, tied, unmerged
from tome_fx.graph.calls import calls
from tome_fx.graph.chunks import join_chunks
from tome_fx.graph.structure import LIMIT, is_alike
from tome_fx.passes.normalize import normalize

B, H, C = 3, 2, 4
Chunk = Callable[[Tensor, slice, Tensor, Tensor, Tensor], Tensor]


def plain(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.transpose(-2, -1) * C**-0.5).softmax(-1) @ v


def fused(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, at], k, v)


def biased(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.mT + b[:, at]).softmax(-1) @ v


def masked(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, at], k, v, attn_mask=b[None, :, at])


def by_hand(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    logits = F.layer_norm(q, (C,))[:, :, at] @ F.normalize(k, dim=-1).mT
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def normed(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    part = F.layer_norm(q[:, :, at], (C,)) * b[0, at, :1]
    return F.linear(((part @ k.mT).softmax(-1) @ v).relu(), k[0, 0, :C])


def the_other_way_round(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (v.mT @ (k @ q.mT[..., at]).softmax(-2)).transpose(2, 3)


def put_together(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return plain(q, at, k, v, b).transpose(1, 2).flatten(2)


def taken_apart(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return plain(q, at, k, v, b).unflatten(3, (2, 2)).flatten(3).contiguous()


def reshaped(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    out = plain(q, at, k, v, b).permute(0, 2, 1, 3)
    return out.reshape(out.shape[0], out.shape[1], H * C)


FUNCTIONS: list[tuple[Chunk, int]] = [
    (plain, 2), (fused, 2), (biased, 2), (masked, 2), (by_hand, 2), (normed, 2),
    (the_other_way_round, 2), (taken_apart, 2), (put_together, 1), (reshaped, 1),
]  # fmt: skip


def inputs() -> list[Tensor]:
    """Queries, keys, values, and a table of what is added for each pair."""
    shapes = (*3 * [(B, H, N, C)], (H, N, N))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def joined_in(function: Callable[..., Tensor]) -> Graph:
    """The program of a function behind ``join_chunks``, which computes what the function does."""
    given = inputs()
    made = make_fx(function, tracing_mode="fake", pre_dispatch=True)(*given)
    join_chunks(made.graph)
    made.graph.eliminate_dead_code()
    made.graph.lint()
    made.recompile()
    torch.testing.assert_close(made(*given), function(*given), rtol=1e-12, atol=1e-12)
    return made.graph


def is_at_once(function: Callable[..., Tensor]) -> bool:
    return not any(calls(node, ("aten.cat",)) for node in joined_in(function).nodes)


def stretches(*borders: int) -> list[slice]:
    return [slice(start, end) for start, end in zip((0, *borders), (*borders, N), strict=True)]


@examples(40)
@given(st.sampled_from(FUNCTIONS), st.sets(st.integers(1, N - 1), min_size=1, max_size=3))
def test_chunks_are_computed_at_once(case: tuple[Chunk, int], borders: set[int]) -> None:
    (chunk, dim), places = case, stretches(*sorted(borders))
    # An axis of one place may be any of them to a reshape.
    alone = chunk in (taken_apart, put_together, reshaped) and any(
        p.stop - p.start == 1 for p in places
    )
    at_once = is_at_once(
        lambda q, k, v, b: torch.cat([chunk(q, at, k, v, b) for at in places], dim)
    )
    assert at_once or alone


def by_other_keys(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, at], k[:, :, at], v[:, :, at])


def causal(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[:, :, at], k, v, is_causal=True)


def over_the_chunk(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.mT).softmax(-2) @ v


def by_a_table_of_its_own(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.mT + b[:, at.start : at.start + 1]).softmax(-1) @ v


def by_the_same_table(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.mT + b[:, : at.stop - at.start]).softmax(-1) @ v


def scaled_by_place(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return (q[:, :, at] @ k.mT * (1 + at.start)).softmax(-1) @ v


def by_a_row_for_each_chunk(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    own = b[:, :3][:, at.start // 4 : at.start // 4 + 1, :3]
    return (q[:, :, at] @ k[:, :, :3].mT + own).softmax(-1) @ v[:, :, :3]


def of_no_product(q: Tensor, at: slice, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    return q[:, :, at].relu()


HALVES = [slice(0, 6), slice(6, 12)]


@pytest.mark.parametrize(
    "chunk",
    [by_other_keys, causal, over_the_chunk, by_a_table_of_its_own, by_the_same_table,
     scaled_by_place, by_a_row_for_each_chunk, of_no_product],
)  # fmt: skip
def test_what_is_another_function_for_each_chunk_stays(chunk: Chunk) -> None:
    places = stretches(4, 8) if chunk is not by_the_same_table else HALVES
    assert not is_at_once(lambda q, k, v, b: torch.cat([chunk(q, at, k, v, b) for at in places], 2))


@pytest.mark.parametrize(
    "places",
    [[slice(0, 5), slice(6, N)], [slice(5, N), slice(0, 5)], [slice(0, 5), slice(4, N)],
     [slice(0, 4), slice(4, 8)], [slice(0, N)]],
)  # fmt: skip
def test_what_is_not_all_places_in_order_stays(places: list[slice]) -> None:
    assert not is_at_once(lambda q, k, v, b: torch.cat([plain(q, at, k, v, b) for at in places], 2))


def test_other_rows_are_not_joined() -> None:
    def of_both(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return torch.cat([plain(q, slice(0, 5), k, v, b), plain(k, slice(5, N), k, v, b)], 2)

    assert not is_at_once(of_both)
    assert not is_at_once(lambda q, k, v, b: torch.cat([plain(q, at, k, v, b) for at in HALVES], 1))


def test_dropped_values_are_drawn_for_each_chunk() -> None:
    def dropped(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return torch.cat(
            [plain(F.dropout(q, 0.5)[:, :, at], slice(None), k, v, b) for at in stretches(4)], 2
        )

    graph = make_fx(dropped, tracing_mode="fake", pre_dispatch=True)(*inputs()).graph
    join_chunks(graph)
    assert any(calls(node, ("aten.cat",)) for node in graph.nodes)


def written(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    result = torch.empty_like(q)
    for at in stretches(4, 8):
        result[:, :, at] = plain(q, at, k, v, b)
    return result


def written_beside(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    result = q * 2
    for at in stretches(4, 8)[1:]:
        result[:, :, at] = plain(q, at, k, v, b)
    return result


@pytest.mark.parametrize(("function", "products"), [(written, 2), (written_beside, 4)])
def test_chunks_that_are_written_into_a_row(function: Callable[..., Tensor], products: int) -> None:
    given = inputs()
    plainly = torch.func.functionalize(function, remove="mutations")
    made = make_fx(plainly, tracing_mode="fake")(*given)
    normalize(made.graph).lint()
    made.recompile()
    torch.testing.assert_close(made(*given), function(*given), rtol=1e-12, atol=1e-12)
    assert sum(calls(node, ("aten.matmul", "aten.bmm")) for node in made.graph.nodes) == products


def depth(steps: int) -> tuple[Node, Node]:
    """Two values that are made alike, each by so many calls."""
    graph = Graph()
    x, ends = graph.placeholder("x"), list[Node]()
    for _ in range(2):
        value = x
        for _ in range(steps):
            value = graph.call_function(torch.ops.aten.add.Tensor, (value, x))
        ends.append(value)
    return ends[0], ends[1]


def test_what_is_alike() -> None:
    assert is_alike(*depth(LIMIT))
    assert not is_alike(*depth(LIMIT + 1))
    assert not is_alike(1, True)
    assert not is_alike([1, 2], [1])
    assert not is_alike({"a": 1}, {"b": 1})
    one, other = depth(1)
    other.args = (other.args[0], 2)
    assert not is_alike(one, other)
    with one.graph.inserting_after(other):
        drawn = [one.graph.call_function(torch.ops.aten.rand_like.default, (one,)) for _ in "ab"]
    assert not is_alike(*drawn)


class Chunked(nn.Module):
    def __init__(self, chunk: Chunk) -> None:
        super().__init__()
        self.qkv, self.mlp, self.chunk = nn.Linear(C * H, 3 * C * H), nn.Linear(C * H, C * H), chunk

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            q, k, v = map(heads, self.qkv(x).chunk(3, -1))
            x = x + joined(torch.cat([self.chunk(q, at, k, v, x) for at in stretches(7)], 2))
            x = x + self.mlp(x)
        return x.mean(1)


@TINY
@pytest.mark.parametrize(("chunk", "told"), [(plain, "at once: 2 times"), (fused, "")])
def test_weights_that_are_in_memory_are_told_of(chunk: Chunk, told: str) -> None:
    model = Chunked(chunk).eval()
    report = tome_fx.transform(model, 2, example_inputs=torch.randn(2, N, C * H)).report
    assert report.schedule == (2, 2)
    notes = [note for note in report.notes if "chunks of its queries" in note]
    assert bool(notes) == bool(told)
    assert all(told in note for note in notes)


TABLE = tied(torch.randn(H, N, N).double(), (1, 2))


@TINY
@pytest.mark.few(2)
@pytest.mark.parametrize("chunk", [plain, fused, biased, by_hand])
def test_tokens_stay_merged(chunk: Chunk) -> None:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = heads(q), heads(k), heads(v)
        return joined(torch.cat([chunk(q, at, k, v, TABLE) for at in stretches(5, 9)], 2))

    assert unmerged(Projected(mix), sites=3) == set()
