"""Ops that take pieces of an axis: exact on the borders of a stream, unmerged inside of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY, C, H, N, heads, joined, random, unmerged

pytestmark = TINY
PROMPTS = random(1, 2, C)


def rejoined(parts: tuple[Tensor, ...]) -> Tensor:
    """A class token and patches, each changed in its own way, as one sequence."""
    first, patches = parts
    return torch.cat([first.sin(), patches.cos()], dim=1)


def prompted(x: Tensor) -> Tensor:
    """Learned tokens between the class token and the patches, gone again afterwards."""
    x = torch.cat([x[:, :1], PROMPTS.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
    x = x + (x @ x.transpose(1, 2) / 9).softmax(-1) @ x
    return torch.cat([x[:, :1], x[:, 3:]], dim=1)


TOKENS = {
    "slices": lambda x: rejoined((x[:, :1], x[:, 1:])),
    "slices from the end": lambda x: rejoined((x[:, :-12], x[:, -12:])),
    "split by sizes": lambda x: rejoined(x.split([1, 12], dim=1)),
    "narrow": lambda x: rejoined((x.narrow(1, 0, 1), x.narrow(1, 1, 12))),
    "narrow from the end": lambda x: rejoined((x.narrow(1, 0, 1), x.narrow(1, -12, 12))),
    "up to its length": lambda x: x[:, : x.shape[1]].sin(),
    "everything": lambda x: x[:, 0:N].sin() + x[:, :].cos(),
    "class token": lambda x: x + x[:, 0].unsqueeze(1),
    "class token from the end": lambda x: x + x[:, -N][:, None],
    "an empty piece": lambda x: torch.cat([x[:, :0], x.sin()], dim=1),
    "put behind": lambda x: torch.cat([x, PROMPTS.expand(x.shape[0], -1, -1)], 1).sin()[:, :N],
    "patches only": lambda x: x[:, 1:].exp(),
}
OTHERS = {
    "chunks": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    "uneven chunks": lambda x: torch.cat(x.chunk(3, -1)[::-1], -1),
    "split": lambda x: torch.cat([p.sin() for p in x.split(2, 2)], 2),
    "every second": lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1),
    "unbound heads": lambda x: torch.cat(x.unflatten(2, (H, -1)).unbind(2)[::-1], -1),
    "unbound q, k, v": lambda x: torch.stack([x, x.sin(), x.cos()], 2).unbind(2)[1],
    "one head": lambda x: heads(x)[:, 0].repeat(1, 1, H),
    "heads by number": lambda x: joined(heads(x)[:, [1, 0]]),
    "all images with their heads": lambda x: joined(
        heads(x).flatten(0, 1)[: x.shape[0] * H].sin().unflatten(0, (-1, H))
    ),
    "channels by number": lambda x: x[..., [3, 1, 2, 0, 7, 6, 5, 4]],
}
TELLS_APART = {
    "every second": lambda x: x[:, ::2],
    "the first half": lambda x: x[:, :7],
    "halves": lambda x: x.chunk(2, 1)[1],
    "cut at a place": lambda x: x.tensor_split([1], dim=1)[1],
    "by many numbers": lambda x: x[:, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]],
}


BY_NUMBER = {
    "every place": lambda x: x[torch.arange(x.shape[0])[:, None], torch.arange(N) + 0].sin(),
    "turned round": lambda x: x[torch.arange(x.shape[0])[:, None], 12 - torch.arange(N)],
    "shifted": lambda x: x[torch.arange(x.shape[0])[:, None], torch.arange(N) - 1],
}


def test_pieces_on_borders_stay_merged() -> None:
    assert unmerged(TOKENS, how="beside") == set()


def test_learned_tokens_come_and_go() -> None:
    assert unmerged(prompted, sites=3) == set()


def test_pieces_of_other_axes_stay_merged() -> None:
    assert unmerged(OTHERS, how="beside") == set()


def test_pieces_of_a_stream_need_all_tokens() -> None:
    expected = {"slice", "chunk", "tensor_split", "index"}
    assert unmerged(TELLS_APART, how="aside") == expected


def test_every_place_by_number_is_the_same_tokens() -> None:
    assert unmerged(BY_NUMBER["every place"], how="beside") == {"index"}


@pytest.mark.parametrize("name", ["turned round", "shifted"])
def test_other_places_by_number_are_told_apart(name: str) -> None:
    assert "index" in unmerged(BY_NUMBER[name], how="aside")


READS = {
    "select": lambda x: x[:, 0],
    "slice": lambda x: x[:, :1],
    "narrow": lambda x: x.narrow(1, 0, 1),
    "split": lambda x: x.split([1, N - 1], 1)[0],
    "tensor_split": lambda x: x.tensor_split([1], dim=1)[0],
    "unbind": lambda x: x.unbind(1)[0],
    "index": lambda x: x[:, [0]],
    "index_select": lambda x: x.index_select(1, torch.tensor([0])),
}


class Reader(nn.Module):
    """Tokens as they are given, of which the first is read at the end."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(C, 2, 2 * C, 0.0, batch_first=True)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.block(self.block(x)))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", READS)
def test_a_token_that_is_read_by_its_place_is_protected(name: str) -> None:
    x = torch.randn(2, N, C)
    fast = tome_fx.transform(Reader(READS[name]).eval(), 2, example_inputs=(x,))
    assert [(p.where, p.count) for p in fast.report.protected] == [("front", 1)]
    assert name in fast.report.protected[0].reason
    assert sum(fast.schedule) == 4
