"""Ops that move, split and join axes: reshape and its kin by ordered factors, cat, stack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.rules.common import TINY, C, D, H, N, heads, joined, random, unmerged

pytestmark = TINY
TABLE = random(1, 1, C)


def packed(x: Tensor) -> Tensor:
    """q, k and v in one tensor, as timm makes them."""
    three = torch.cat([x, x.sin(), x.cos()], -1)
    return joined(three.reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4).prod(0))


RESHAPES = {
    "heads and back": lambda x: joined(heads(x).relu()),
    "view": lambda x: x.view(x.shape[0], N, 2, C // 2).relu().view(x.shape),
    "view with -1": lambda x: x.view(-1, N, C).exp(),
    "flatten and unflatten": lambda x: x.flatten(0, 1).relu().unflatten(0, (-1, N)),
    "tokens in the batch": lambda x: x.reshape(-1, C).sin().view(-1, N, C),
    "batch in the tokens": lambda x: (
        x.transpose(0, 1).reshape(-1, C).sin().reshape(N, -1, C).transpose(0, 1)
    ),
    "all but the batch": lambda x: x.flatten(1).sin().unflatten(1, (N, C)),
    "view_as": lambda x: x.flatten(1).sin().view_as(x),
    "reshape_as": lambda x: x.flatten(0, 1).sin().reshape_as(x),
    "packed q, k, v": packed,
}
MOVES = {
    "sequence first": lambda x: x.transpose(0, 1).sin().transpose(0, 1),
    "tokens last": lambda x: x.mT.sin().permute(0, 2, 1),
    "movedim, swapaxes": lambda x: x.movedim(1, 2).sin().swapaxes(-1, 1),
    "several": lambda x: heads(x).movedim((1, 2), (2, 1)).flatten(2),
    "unsqueeze, squeeze": lambda x: x.unsqueeze(-1).unsqueeze(1).sin().squeeze(-1)[:, 0],
    "squeeze of several": lambda x: x[:, None, :, None].sin().squeeze((1, 3)),
    "none in an index": lambda x: x[:, None, :, None].sin()[:, 0, :, 0],
    "contiguous": lambda x: x.transpose(1, 2).contiguous().sin().transpose(1, 2),
}
COPIES = {
    "expand of a mean": lambda x: x.mean(1, keepdim=True).expand(-1, N, -1),
    "expand by a shape": lambda x: x.mean(1, keepdim=True).expand(x.shape),
    "expand_as": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "class token": lambda x: x * x[:, :1].expand(-1, N, -1),
    "new heads": lambda x: x[:, None].expand(-1, H, -1, -1).sin().sum(1),
    "repeat of channels": lambda x: x.repeat(1, 1, 2)[..., C // 2 : C + C // 2],
    "repeat of a mean": lambda x: x.mean(1, keepdim=True).repeat(1, N, 1),
    "repeated heads": lambda x: joined(heads(x)[:, :1].repeat_interleave(H, dim=1)),
    "each token twice": lambda x: x.repeat_interleave(2, 1).unflatten(1, (N, 2)).sum(2),
    "all tokens twice": lambda x: x.repeat(1, 2, 1).unflatten(1, (2, N)).sum(1),
}
JOINS = {
    "channels": lambda x: torch.cat([x.sin(), x.cos()], -1)[..., 2 : 2 + C],
    "heads": lambda x: joined(torch.cat([heads(x), heads(x).sin()], 1)[:, 1 : 1 + H]),
    "with a table": lambda x: torch.cat([x, TABLE.expand(x.shape[0], N, C)], -1)[..., 3 : 3 + C],
    "tokens twice on one axis": lambda x: torch.cat([x, x.sin()], 1),
    "stack in front": lambda x: torch.stack([x, x.sin()]).sum(0),
    "stack behind the batch": lambda x: torch.stack([x, x.sin()], 1).mean(1),
    "stack behind the channels": lambda x: torch.stack([x, x.sin()], -1).amax(-1),
    "pairs": lambda x: torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape),
}
# On the tokens themselves: what each of them does needs all of them in their order.
TELLS_APART = {
    "rows": lambda x: x[:, 1:].reshape(-1, 3, 4, C).sin().amax(2),
    "with channels": lambda x: x[:, 1:].reshape(-1, 8, 12),
    "pairs": lambda x: x[:, 1:].unflatten(1, (6, 2)).amax(2),
    "queries and keys": lambda x: (x @ x.transpose(1, 2)).flatten(1),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("group", [RESHAPES, MOVES, COPIES, JOINS], ids=list("rmcj"))
def test_stays_merged(group: dict[str, object]) -> None:
    assert unmerged(group, how="beside") == set()


def test_without_class_token() -> None:
    group = {"heads": lambda x: joined(heads(x)), "flat": lambda x: x.flatten(1).sin().sum(1)}
    assert unmerged(group, how="beside", front=0) == set()


def test_needs_all_tokens() -> None:
    assert unmerged(TELLS_APART, how="aside") == {"reshape", "amax", "flatten"}


SQUEEZES = {
    "one axis": lambda x: x.squeeze(1),
    "all axes": lambda x: x.squeeze(),
    "a list of axes": lambda x: x[:, None].squeeze((1, 2)),
}


class Down(nn.Module):
    """Four tokens that come down to one, and an op on them there."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(C, 2, C, 0.0, batch_first=True) for _ in range(2)
        )
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.op(x).flatten(1)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SQUEEZES)
def test_a_single_token_that_is_left_keeps_its_axis(name: str) -> None:
    model = Down(SQUEEZES[name]).double().eval()
    x = random(3, 1, C).expand(3, 4, C).contiguous()
    fast = tome_fx.transform(model, [2, 1], example_inputs=x)
    assert fast.schedule == (2, 1)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-9)
