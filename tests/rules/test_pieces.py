"""Ops that take pieces of an axis: exact on the borders of a stream, unmerged inside of it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.rules.common import TINY, C, Case, D, H, N, case, every, heads, joined, random

pytestmark = TINY


def rejoined(parts: tuple[Tensor, ...]) -> Tensor:
    """A class token and patches, each changed in its own way, as one sequence."""
    first, patches = parts
    return torch.cat([first.sin(), patches.cos()], dim=1)


def prompted(x: Tensor) -> Tensor:
    """New learned tokens between the class token and the patches, gone again afterwards."""
    prompts = random(1, 2, C).expand(x.shape[0], -1, -1)
    x = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
    x = x + (x @ x.transpose(1, 2) / 9).softmax(-1) @ x
    return torch.cat([x[:, :1], x[:, 3:]], dim=1)


MERGED = {
    "class token and patches": case(lambda x: rejoined((x[:, :1], x[:, 1:]))),
    "counted from the end": case(lambda x: rejoined((x[:, :-12], x[:, -12:]))),
    "split by sizes": case(lambda x: rejoined(x.split([1, 12], dim=1))),
    "narrow": case(lambda x: rejoined((x.narrow(1, 0, 1), x.narrow(1, 1, 12)))),
    "narrow from the end": case(lambda x: rejoined((x.narrow(1, 0, 1), x.narrow(1, -12, 12)))),
    "up to its own length": case(lambda x: x[:, : x.shape[1]].sin()),
    "slice of everything": case(lambda x: x[:, 0:N].sin() + x[:, :].cos()),
    "the class token by number": case(lambda x: x + x[:, 0].unsqueeze(1)),
    "the class token from the end": case(lambda x: x + x[:, -N][:, None]),
    "an empty piece": case(lambda x: torch.cat([x[:, :0], x.sin()], dim=1)),
    "tokens put behind and taken off": case(
        lambda x: torch.cat([x, random(1, 2, C).expand(x.shape[0], -1, -1)], 1).sin()[:, :N]
    ),
    "tokens put between": case(prompted),
    "chunks of channels": case(lambda x: torch.cat(x.chunk(2, -1)[::-1], -1)),
    "uneven chunks of channels": case(lambda x: torch.cat(x.chunk(3, -1)[::-1], -1)),
    "split of channels": case(lambda x: torch.cat([p.sin() for p in x.split(2, 2)], 2)),
    "every second channel": case(lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1)),
    "unbound heads": case(lambda x: torch.cat(x.unflatten(2, (H, D)).unbind(2)[::-1], -1)),
    "unbound q, k, v": case(
        lambda x: torch.stack([x, x.sin(), x.cos()], 2).permute(2, 0, 1, 3).unbind(0)[1]
    ),
    "one head": case(lambda x: heads(x)[:, 0].repeat(1, 1, H)),
    "heads taken and joined": case(lambda x: joined(heads(x)[:, [1, 0]])),
    "channels in another order": case(lambda x: x[..., [3, 1, 2, 0, 7, 6, 5, 4]]),
    "masked channels": case(lambda x: x * torch.tensor([1.0, 0.0] * 4, dtype=x.dtype)),
}

UNMERGED = {
    "cut at a place": case(lambda x: x.tensor_split([1], dim=1)[1], "tensor_split", inline=False),
    "the class token by a list": case(lambda x: x[:, [0]], "index", inline=False),
    "every second token": case(lambda x: x[:, ::2], "slice", inline=False),
    "the first half": case(lambda x: x[:, :7].cumsum(1), "slice", inline=False),
    "halves": case(lambda x: x.chunk(2, 1)[1], "chunk", inline=False),
    "single tokens": case(lambda x: x.unbind(1)[5], "unbind", inline=False),
    "tokens by a mask of places": case(
        lambda x: x[:, torch.arange(N) % 3 == 0], "index", inline=False
    ),
}


@every(MERGED)
def test_stays_merged(held: Case) -> None:
    held.hold()


@every(UNMERGED)
def test_needs_all_tokens(held: Case) -> None:
    held.hold()
