"""Ops that move, split and join axes: reshape and its kin by ordered factors, cat, stack."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.rules.common import TINY, C, Case, D, H, N, case, every, heads, joined, random

pytestmark = TINY


def split_heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], N, H, D)


MERGED = {
    "heads and back": case(lambda x: joined(heads(x).relu())),
    "view": case(lambda x: x.view(x.shape[0], N, 2, C // 2).relu().view(x.shape)),
    "view with -1": case(lambda x: x.view(-1, N, C).exp()),
    "flatten and unflatten": case(lambda x: x.flatten(0, 1).relu().unflatten(0, (-1, N))),
    "tokens folded into the batch": case(lambda x: x.reshape(-1, C).sin().view(-1, N, C)),
    "batch folded into the tokens": case(
        lambda x: x.transpose(0, 1).reshape(-1, C).sin().reshape(N, -1, C).transpose(0, 1)
    ),
    "all but the batch folded": case(lambda x: x.flatten(1).sin().unflatten(1, (N, C))),
    "view_as": case(lambda x: x.flatten(1).sin().view_as(x)),
    "reshape_as": case(lambda x: x.flatten(0, 1).sin().reshape_as(x)),
    "sequence first": case(lambda x: x.transpose(0, 1).sin().transpose(0, 1)),
    "tokens last": case(lambda x: x.mT.sin().permute(0, 2, 1)),
    "movedim and swapaxes": case(lambda x: x.movedim(1, 2).sin().swapaxes(-1, 1)),
    "moved several": case(lambda x: split_heads(x).movedim((1, 2), (2, 1)).transpose(1, 2).sum(2)
                          .repeat(1, 1, 2)),
    "unsqueeze and squeeze": case(lambda x: x.unsqueeze(-1).unsqueeze(1).sin().squeeze(-1)[:, 0]),
    "squeeze of several axes": case(lambda x: x[:, None, :, None].sin().squeeze((1, 3))),
    "none in an index": case(lambda x: x[:, None, :, None].sin()[:, 0, :, 0]),
    "contiguous": case(lambda x: x.transpose(1, 2).contiguous().sin().transpose(1, 2)),
    "expand of a mean": case(lambda x: x + x.mean(1, keepdim=True).expand(-1, N, -1)),
    "expand by its own shape": case(lambda x: x + x.mean(1, keepdim=True).expand(x.shape)),
    "expand_as": case(lambda x: x + x.mean(1, keepdim=True).expand_as(x)),
    "expand of the class token": case(lambda x: x * x[:, :1].expand(-1, N, -1)),
    "expand of new heads": case(lambda x: x[:, None].expand(-1, H, -1, -1).sin().sum(1)),
    "repeat of channels": case(lambda x: x.repeat(1, 1, 2)[..., C // 2 : C + C // 2]),
    "repeat of a mean": case(lambda x: x + x.mean(1, keepdim=True).repeat(1, N, 1)),
    "repeat_interleave of heads": case(
        lambda x: joined(heads(x).repeat_interleave(2, 1)).sin().unflatten(2, (H, 2, D)).sum(3)
        .flatten(2)
    ),
    "copies of every token": case(lambda x: x.repeat_interleave(2, 1).unflatten(1, (N, 2)).sum(2)),
    "copies of all tokens": case(lambda x: x.repeat(1, 2, 1).unflatten(1, (2, N)).sum(1)),
    "cat of channels": case(lambda x: torch.cat([x.sin(), x.cos()], -1)[..., 2 : 2 + C]),
    "cat of heads": case(lambda x: joined(torch.cat([heads(x), heads(x).sin()], 1)[:, 1 : 1 + H])),
    "cat of a stream and a table": case(
        lambda x: torch.cat([x, random(1, 1, C).expand(x.shape[0], N, C)], -1)[..., 3 : 3 + C]
    ),
    "stack in front": case(lambda x: torch.stack([x, x.sin()]).sum(0)),
    "stack behind the batch": case(lambda x: torch.stack([x, x.sin()], 1).mean(1)),
    "stack behind the channels": case(lambda x: torch.stack([x, x.sin()], -1).amax(-1)),
    "pairs of channels": case(
        lambda x: torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    ),
    "packed q, k, v": case(
        lambda x: torch.cat([x, x.sin(), x.cos()], -1).reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4)
        .prod(0).transpose(1, 2).flatten(2)
    ),
}  # fmt: skip

UNMERGED = {
    "tokens cut into rows": case(
        lambda x: x[:, 1:].reshape(-1, 3, 4, C).sin().amax(2), "reshape", inline=False
    ),
    "tokens mixed with channels": case(
        lambda x: x[:, 1:].reshape(-1, 8, 12), "reshape", inline=False
    ),
    "tokens cut to patches of two": case(
        lambda x: x[:, 1:].unflatten(1, (6, 2)).amax(2), "unflatten", inline=False
    ),
    "queries and keys on one axis": case(
        lambda x: (x @ x.transpose(1, 2)).flatten(1), "flatten", inline=False
    ),
    "the same tokens twice on one axis": case(
        lambda x: torch.cat([x, x.sin()], 1), "cat", inline=False
    ),
}


@every(MERGED)
def test_stays_merged(held: Case) -> None:
    held.hold()


@every(UNMERGED)
def test_needs_all_tokens(held: Case) -> None:
    held.hold()


def test_without_a_class_token_too() -> None:
    case(lambda x: joined(heads(x).relu()), front=0).hold()
