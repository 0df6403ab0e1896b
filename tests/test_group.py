"""Attentions of stretches of a row become one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

import tome_fx
from tests.laws.common import TINY, distance
from tests.packed import Packed
from tome_fx.passes.group import group

pytestmark = TINY


class Row(nn.Module):
    """Attention within stretches of a row."""

    def __init__(self, lengths: list[int], cut: str = "split", **how: Any) -> None:
        super().__init__()
        self.lengths, self.cut, self.how = lengths, cut, how

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([sdpa(*one, **self.how) for one in zip(*map(self.parts, (q, k, v)))], 2)  # noqa: B905

    def parts(self, row: Tensor) -> list[Tensor]:
        if self.cut == "split":
            return list(row.split(self.lengths, 2))
        if self.cut == "chunk":
            return list(row.chunk(len(self.lengths), -2))
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        if self.cut == "slice":
            return [row[:, :, a : a + n] for a, n in zip(starts, self.lengths, strict=True)]
        return [row.narrow(2, a, n) for a, n in zip(starts, self.lengths, strict=True)]


def grouped(model: nn.Module, batch: int = 1, tokens: int = 24) -> tuple[int, int]:
    """What ``group`` makes of a model; its result is the model's."""
    rows = tuple(torch.randn(batch, 2, tokens, 4, dtype=torch.float64) for _ in range(3))
    exported = torch.export.export(model, rows)
    module = exported.module()
    for node in module.graph.find_nodes(op="placeholder"):
        assert node.meta["val"].dim() == 4
    found = group(module.graph)
    module.recompile()
    torch.manual_seed(0)
    after = module(*rows)
    torch.manual_seed(0)
    assert distance(after, model(*rows)) < 1e-12
    return found


@pytest.mark.parametrize(
    ("lengths", "cut", "calls"),
    [
        ([8, 8, 8], "split", 1),
        ([8, 8, 8], "chunk", 1),
        ([8, 4, 8, 4], "split", 2),
        ([8, 4, 8, 4], "slice", 2),
        ([8, 4, 8, 4], "narrow", 2),
        ([8, 10, 6], "split", 3),
    ],
)
def test_those_of_a_length(lengths: list[int], cut: str, calls: int) -> None:
    assert grouped(Row(lengths, cut)) == (len(lengths), calls)
    assert grouped(Row(lengths, cut, is_causal=True, scale=0.3)) == (len(lengths), calls)


def test_what_is_left_alone() -> None:
    """Dropout, a mask of the model, and rows of several images."""
    assert grouped(Row([8, 8, 8], dropout_p=0.5)) == (0, 0)
    mask = torch.randn(8, 8, dtype=torch.float64)
    assert grouped(Row([8, 8, 8], attn_mask=mask)) == (0, 0)
    assert grouped(Row([8, 8, 8]), batch=2) == (0, 0)


class Turned(nn.Module):
    """Stretches of ``[N, H, C]``, each turned to ``[1, H, n, C]`` by itself."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [row[0].transpose(0, 1) for row in (q, k, v)]
        return torch.cat(
            [sdpa(*(self.turned(row[a : a + 8]) for row in rows))[0] for a in (0, 8, 16)], 1
        )

    def turned(self, part: Tensor) -> Tensor:
        if self.way == "permute":
            return part[:, None].permute(1, 2, 0, 3)
        if self.way == "behind":
            return part.permute(1, 2, 0).unsqueeze(-4).transpose(-1, -2)
        return part.transpose(0, 1).unsqueeze(0)


class Around(Row):
    """Each time cut out of the row anew."""

    def parts(self, row: Tensor) -> list[Tensor]:
        return [row.mT.narrow(-1, start, 8).mT for start in (0, 8, 16)]


def test_views_that_are_made_anew() -> None:
    assert grouped(Around([8, 8, 8])) == (3, 1)


@pytest.mark.parametrize("way", ["permute", "behind", "transpose"])
def test_stretches_that_are_turned_one_by_one(way: str) -> None:
    assert grouped(Turned(way)) == (3, 1)


class Crossed(Row):
    """The queries of a stretch look at the keys of another one."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = map(self.parts, (q, k, v))
        return torch.cat(
            [sdpa(queries[0], keys[1], values[1]), sdpa(queries[1], keys[0], values[0]),
             sdpa(queries[2], keys[2], values[1])], 2)  # fmt: skip


def test_starts_of_their_own() -> None:
    """Keys and values of different stretches are no stretch."""
    assert grouped(Crossed([8, 8, 8])) == (2, 1)


class Clamped(Row):
    """Borders beyond the row, as PyTorch clamps them."""

    def parts(self, row: Tensor) -> list[Tensor]:
        return [row[:, :, -100:12], row[:, :, 12:100]]


def test_borders_beyond_the_row() -> None:
    assert grouped(Clamped([12, 12])) == (2, 1)


@torch.no_grad()
def test_sizes_come_along() -> None:
    config = Packed(lengths=(16, 24, 16, 24, 24))
    model, x, row = config.build(), config.duplicates(), torch.tensor([16, 24, 16, 24, 24])
    # Rounding picks among duplicates and differs by machine. Of two there are enough in each layer,
    # whichever were taken before; of three the first stretch can run out of them in the last.
    fast = tome_fx.transform(model, 2, example_inputs=(x, row), min_ratio=0)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    assert len(fast.graph.find_nodes(op="call_function", target=attention)) == 2 * 3
    assert any("15 in 6" in note for note in fast.report.notes)
    assert distance(fast(x, row), model(x, row)) < 1e-9
    plain = tome_fx.transform(model, 2, example_inputs=(x, row), min_ratio=0, prop_attn=False)
    assert distance(plain(x, row), model(x, row)) > 1e-6
