"""Where tokens are: added tables, rotary tables, relative biases in the ways that models spell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_fx
from tests.rules.common import (
    GRID,
    PATCHES,
    TINY,
    C,
    D,
    Eager,
    H,
    N,
    Projected,
    distance,
    heads,
    host,
    images,
    joined,
    random,
    tied,
    unmerged,
)

pytestmark = TINY
COS, SIN = tied(random(N, D), (0,)), tied(random(N, D, seed=4), (0,))
PATCH_COS, PATCH_SIN = (tied(random(1, 1, PATCHES, D, seed=s), (2,), front=0) for s in (5, 6))
ANGLES = tied(random(N, D // 2), (0,))
PAIRS = tied((7 * torch.arange(N * N) % 23).reshape(N, N), (0, 1))
ROWS, WIDE = random(23, H), random(23, D)
BY_QUERY, TABLE = tied(random(N, N, D), (0, 1)), tied(random(N, C), (0,))


def rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * COS + torch.cat([-right, left], dim=-1) * SIN


def rotate_pairs(x: Tensor) -> Tensor:
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * COS + turned * SIN


def rotate_complex(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(ANGLES), ANGLES)).flatten(-2)


def rotate_patches(x: Tensor) -> Tensor:
    first, rest = x[:, :, :1], x[:, :, 1:]
    left, right = rest.unflatten(-1, (2, -1)).unbind(-2)
    rest = rest * PATCH_COS + torch.cat([-right, left], -1) * PATCH_SIN
    return torch.cat([first, rest], dim=2).type_as(x)


def rotated(turn: object) -> Projected:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turn(heads(q)), turn(heads(k))  # type: ignore[operator]
        return joined(F.scaled_dot_product_attention(q, k, heads(v)))

    return Projected(mix)


def test_rotary_tables_travel_with_their_tokens() -> None:
    turns = [rotate_half, rotate_pairs, rotate_complex, rotate_patches]
    blocks = {turn.__name__: rotated(turn) for turn in turns}
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


def by_rows(a: Tensor) -> Tensor:
    return a + ROWS[PAIRS.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


def of_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = heads(q) @ heads(k).mT + torch.einsum("bhnd,nmd->bhnm", heads(q), BY_QUERY)
    return joined(scores.softmax(-1) @ heads(v))


def of_queries_by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query against all distances, then the right one for each key."""
    far = heads(q) @ WIDE.mT
    far = far.gather(-1, PAIRS.expand(q.shape[0], H, N, N))
    return joined((heads(q) @ heads(k).mT + far).softmax(-1) @ heads(v))


BIASES = {
    "rows of a table": Eager(by_rows),
    "table by pairs": Eager(lambda a: a + ROWS[PAIRS].permute(2, 0, 1)),
    "embedding": Eager(lambda a: a + F.embedding(PAIRS, ROWS).permute(2, 0, 1)[None]),
    "index_select": Eager(
        lambda a: a + ROWS.index_select(0, PAIRS.view(-1)).view(N, N, H).permute(2, 0, 1)
    ),
    "small net": Eager(lambda a: a + F.gelu(BY_QUERY @ WIDE[:H].mT).permute(2, 0, 1)),
    "with sigmoid": Eager(lambda a: a + 16 * torch.sigmoid(ROWS[PAIRS]).permute(2, 0, 1)),
    "distances": Eager(lambda a: a - PAIRS.sqrt() * torch.tensor([0.5, 0.1]).view(H, 1, 1)),
    "patches only": Eager(lambda a: a + F.pad(ROWS[PAIRS[1:, 1:]].permute(2, 0, 1), (1, 0, 1, 0))),
    "in place": Eager(lambda a: a.add_(ROWS[PAIRS].permute(2, 0, 1))),
    "blended": Eager(None, lambda a: 0.7 * a + 0.3 * ROWS[PAIRS].permute(2, 0, 1).softmax(-1)),
    "of queries": Projected(of_queries),
}


def test_relative_biases_travel_with_their_tokens() -> None:
    assert unmerged(BIASES, sites=2 + len(BIASES)) == set()


def test_a_lookup_by_key_is_exact() -> None:
    assert unmerged(Projected(of_queries_by_rows), sites=3) <= {"gather", "expand"}


def decomposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Biases by row and by column of the grid, as SAM has them; alike for every patch here."""
    q, k = heads(q)[:, :, 1:], heads(k)[:, :, 1:]
    image = q.unflatten(2, GRID)
    rows = torch.einsum("bhxyd,xud->bhxyu", image, torch.ones(3, 3, D, dtype=q.dtype) / 5)
    columns = torch.einsum("bhxyd,yvd->bhxyv", image, torch.ones(4, 4, D, dtype=q.dtype) / 7)
    scores = (q @ k.mT).view(-1, H, *GRID, *GRID) + rows[..., None] + columns[..., None, :]
    weights = scores.view(-1, H, PATCHES, PATCHES).softmax(-1)
    return torch.cat([v[:, :1], joined(weights @ heads(v)[:, :, 1:])], dim=1)


def test_decomposed_positions_are_exact_and_a_site() -> None:
    assert unmerged(Projected(decomposed), sites=3) == {"einsum"}


class Learned(nn.Module):
    """A bias for each pair of tokens as a parameter, its index as a buffer; as in Swin and BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Eager(self.bias)
        self.rows = nn.Parameter(torch.zeros(23, H))
        self.register_buffer("index", PAIRS)

    def bias(self, scores: Tensor) -> Tensor:
        return scores + self.rows[self.index.view(-1)].view(N, N, H).permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


def test_learned_biases_travel_too() -> None:
    assert unmerged(Learned(), sites=3) == set()


def test_positions_added_again_in_each_block() -> None:
    added = {
        "table": lambda x: x + TABLE,
        "patches": lambda x: torch.cat([x[:, :1], x[:, 1:] + TABLE[1:]], 1),
        "scaled by data": lambda x: x + TABLE * x.mean(1, keepdim=True),
    }
    assert unmerged(added, how="beside") == set()


# The same table for every image, as the model writes it.
Spelled = Callable[[Tensor, Tensor], Tensor]
SPELLINGS: dict[str, Spelled] = {
    "broadcast": lambda table, x: table,
    "expanded": lambda table, x: table.expand(x.shape[0], *table.shape[1:]),
    "repeated": lambda table, x: table.repeat(x.shape[0], *(1 for _ in table.shape[1:])),
}
# Its rows are unlike each other: the mean of a group is not its representative's.
LOOSE, LEVEL, NEAR = random(1, 1, N, N, seed=8), random(1, N, C, seed=9), random(1, C, *GRID)
RANKS = random(60, C, seed=11)


def masked(spell: Spelled) -> nn.Module:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = spell(LOOSE, q)
        return joined(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask))

    return Projected(mix)


def on_the_grid(x: Tensor, spell: Spelled) -> Tensor:
    grid = x[:, 1:].transpose(1, 2).unflatten(2, GRID) + spell(NEAR, x)
    return torch.cat([x[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def by_a_net(a: Tensor, spell: Spelled) -> Tensor:
    return a + F.gelu(spell(LOOSE, a).movedim(1, -1) @ WIDE[:1, :H]).movedim(-1, 1)


def folded(a: Tensor, spell: Spelled) -> Tensor:
    """Heads beside the images on one axis."""
    if spell is SPELLINGS["broadcast"]:
        return a + LOOSE
    table = spell(LOOSE, a).expand(a.shape[0], H, N, N).flatten(0, 1)
    return (a.flatten(0, 1) + table).unflatten(0, (-1, H))


TABLES: dict[str, Callable[[Spelled], Any]] = {
    "logits": lambda spell: Eager(lambda a: a + spell(LOOSE, a)),
    "mask": masked,
    "net": lambda spell: Eager(lambda a: by_a_net(a, spell)),
    "blended": lambda spell: Eager(None, lambda a: 0.7 * a + 0.3 * spell(LOOSE, a).softmax(-1)),
    "folded": lambda spell: Eager(lambda a: folded(a, spell)),
    "features": lambda spell: lambda x: x + spell(LEVEL, x).sin(),
    "grid": lambda spell: lambda x: on_the_grid(x, spell),
    "index": lambda spell: lambda x: x + RANKS[(9 * spell(LEVEL, x).abs()).long()[..., 0]],
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_the_model_writes_out_for_every_image_is_still_a_table(name: str) -> None:
    x = images(tuple(range(PATCHES)))
    results = []
    for spell in SPELLINGS.values():
        made = TABLES[name](spell)
        sites = [4, 2, 1] if isinstance(made, Projected) else [4, 2]
        fast = tome_fx.transform(host(made), sites, example_inputs=x)
        assert list(fast.schedule) == sites
        results.append(fast(x))
    assert distance(results[1], results[0]) < 1e-12
    assert distance(results[2], results[0]) < 1e-12
    assert distance(results[0], host(TABLES[name](SPELLINGS["broadcast"]))(x)) > 1e-6
