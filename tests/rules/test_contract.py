"""Products: attention in every spelling, heads that talk, sums over tokens without a softmax."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.common import (
    TINY,
    C,
    D,
    Eager,
    H,
    N,
    Projected,
    heads,
    joined,
    random,
    tied,
    unmerged,
)

pytestmark = TINY
MIX = torch.tensor([[1.0, 0.5], [0.3, 2.0]], dtype=torch.float64)
WEIGHT = random(C, C) / 3
MEMORIES = random(1, 2, C)
BIAS = tied(random(N, N), (0, 1))


def folded(x: Tensor) -> Tensor:
    """``[B, N, C] -> [B * H, N, D]``."""
    return heads(x).reshape(-1, N, D)


def unfolded(x: Tensor) -> Tensor:
    return joined(x.reshape(-1, H, N, D))


def heads_first(x: Tensor) -> Tensor:
    """``[B, N, C] -> [H * B, N, D]``: the heads outside, the images inside."""
    return x.unflatten(2, (H, D)).permute(2, 0, 1, 3).reshape(-1, N, D)


def from_heads_first(x: Tensor) -> Tensor:
    return x.reshape(H, -1, N, D).permute(1, 2, 0, 3).flatten(2)


def cat_heads(x: Tensor) -> Tensor:
    """The same by a ``cat`` of the heads along the batch."""
    return torch.cat(x.split(D, 2), 0)


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.unflatten(2, (H, D)) for t in (q, k, v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def ellipsis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("...id,...jd->...ij", heads(q), heads(k)).softmax(-1)
    return joined(torch.einsum("...ij,...jd->...id", weights, heads(v)))


def key_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhjd,bhid->bhji", heads(k), heads(q)).softmax(2)
    return joined(torch.einsum("bhji, bhjd -> bhid", weights, heads(v)))


def key_first_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (heads(k) @ heads(q).transpose(-1, -2)).transpose(-1, -2)
    return joined(scores.softmax(-1) @ heads(v))


def one_key_for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bjd->bhij", heads(q), k[..., :D]).softmax(-1)
    return joined(torch.einsum("bhij,bjd->bhid", weights, v[..., D:]))


def one_query_for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bid,bhjd->bhij", q[..., :D], heads(k)).softmax(-1)
    return joined(weights @ heads(v))


def by_distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined((-torch.cdist(heads(q), heads(k)).square()).softmax(-1) @ heads(v))


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.bmm(folded(q), folded(k).transpose(1, 2)).softmax(-1)
    return unfolded(torch.bmm(weights, folded(v)))


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(BIAS, folded(q), folded(k).transpose(1, 2), alpha=0.5)
    return unfolded(scores.softmax(-1) @ folded(v))


def baddbmm_of_nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    empty = torch.zeros(q.shape[0] * H, N, N, dtype=q.dtype)
    scores = torch.baddbmm(empty, folded(q), folded(k).transpose(1, 2), beta=0, alpha=0.5)
    return unfolded(scores.softmax(-1) @ folded(v))


def outside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = map(heads_first, (q, k, v))
    weights = (torch.bmm(q, k.transpose(1, 2)) + BIAS).softmax(-1)
    return from_heads_first(torch.bmm((weights - 0.01).relu(), v))


def joined_by_cat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = map(cat_heads, (q, k, v))
    weights = (q @ k.transpose(1, 2)).softmax(-1)
    return torch.cat((weights @ v).chunk(H, 0), 2)


def residual_inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.baddbmm(v, (q @ k.transpose(1, 2) / 3).softmax(-1), v)


def differential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second = ((heads(t) @ heads(k).transpose(-1, -2)).softmax(-1) for t in (q, q.sin()))
    return joined((first - 0.3 * second) @ heads(v))


SPELLINGS = [einsums, ellipsis, key_first, key_first_matmul, bmm, baddbmm, baddbmm_of_nothing,
             outside, joined_by_cat, residual_inside, differential, one_key_for_all_heads,
             one_query_for_all_heads, by_distances]  # fmt: skip


def test_attention_in_every_spelling_stays_merged() -> None:
    blocks = {mix.__name__: Projected(mix) for mix in SPELLINGS}
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


class Talk(nn.Module):
    """A linear over the heads of ``[B, H, N, N]``."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(H, H, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_talking_heads_stay_merged() -> None:
    """Before the softmax they speak of logits, after it of totals: a bias needs the members."""

    def by_einsum(x: Tensor) -> Tensor:
        return torch.einsum("bhij,hg->bgij", x, MIX)

    blocks = {
        "linear": Eager(Talk(False), Talk(False)),
        "linear with bias": Eager(Talk(True), Talk(True)),
        "einsum": Eager(by_einsum, by_einsum),
        "matmul": Eager(lambda x: (x.permute(0, 2, 3, 1) @ MIX).permute(0, 3, 1, 2)),
        "twice": Eager(lambda x: by_einsum(by_einsum(x).relu())),
        "convolution": Eager(nn.Conv2d(H, H, 1), nn.Conv2d(H, H, 1, bias=False)),
        "norm of heads": Eager(None, nn.BatchNorm2d(H)),
    }
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


def xca(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cross-covariance attention: channels attend to channels, summed over tokens."""
    q, k, v = (heads(t).transpose(-1, -2) for t in (q, k, v))
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)).softmax(-1)
    return joined((weights @ v).transpose(-1, -2))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = F.elu(heads(q)) + 1, F.elu(heads(k)) + 1, heads(v)
    total = q @ k.sum(-2, keepdim=True).transpose(-1, -2)
    return joined(q @ (k.transpose(-1, -2) @ v) / total)


def in_one_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with its normaliser as a third operand."""
    q, k, v = (t.unflatten(2, (H, D)) for t in (F.elu(q) + 1, F.elu(k) + 1, v))
    sums = torch.einsum("nshd,nshv->nhdv", k, v)
    shares = 1 / torch.einsum("nlhd,nhd->nlh", q, k.sum(1))
    return torch.einsum("nlhd,nhdv,nlh->nlhv", q, sums, shares).flatten(2)


def keys_values_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bmhd,bmhe,bnhd->bnhe", *(t.unflatten(2, (H, D)) for t in (k, v, q)))


def behind(x: Tensor) -> Tensor:
    """Heads of the tokens with learned ones in front."""
    return heads(torch.cat([MEMORIES.expand(x.shape[0], -1, -1), x], 1))


SUMS: dict[str, Callable[..., Tensor]] = {
    "cross-covariance": xca,
    "linear": linear_attention,
    "three operands": in_one_einsum,
    "all in one": lambda q, k, v: keys_values_queries(q, k, v).flatten(2) / N,
    "efficient": lambda q, k, v: joined(
        heads(q).softmax(-1) @ (heads(k).softmax(-2).transpose(-1, -2) @ heads(v))
    ),
    "einsum": lambda q, k, v: q @ torch.einsum("bne,bnd->bed", k / N, v),
    "no softmax": lambda q, k, v: joined(heads(q) @ heads(k).mT @ heads(v) / N),
    "relu": lambda q, k, v: joined((heads(q) @ heads(k).mT).relu() / N @ heads(v)),
    "sigmoid": lambda q, k, v: joined((heads(q) @ heads(k).mT).sigmoid() @ heads(v) / N),
    "with memories": lambda q, k, v: joined(
        (heads(q) @ behind(k).mT).sigmoid() @ behind(v.sin()) / N
    ),
    "softmax by hand": lambda q, k, v: joined(by_hand(heads(q) @ heads(k).mT) @ heads(v)),
    "alone": lambda q, k, v: v + torch.einsum("bnc,oc->bo", k / N, WEIGHT)[:, None],
    "totals alone": lambda q, k, v: torch.einsum("bhqk,hc->bqc", shares_of(q, k) ** 2, WEIGHT[:H]),
    "gram": lambda q, k, v: torch.bmm(q, torch.bmm(k.transpose(1, 2), v)) / N,
    "added": lambda q, k, v: torch.baddbmm(v, q, k.transpose(1, 2) @ v / N),
    "addmm": lambda q, k, v: torch.addmm(WEIGHT[0], v.reshape(-1, C), WEIGHT).view_as(v),
    "vector": lambda q, k, v: q * (k @ WEIGHT[0])[..., None],
    "distances": lambda q, k, v: (-(q[:, :, None] - k[:, None]).square().sum(-1)).exp() @ v / N,
}


def shares_of(q: Tensor, k: Tensor) -> Tensor:
    return (heads(q) @ heads(k).mT).softmax(-1)


# Those whose result meets values of the same tokens again are attention: tokens merge behind them.
LINEAR = ("cross-covariance", "linear", "efficient", "einsum", "gram", "added", "no softmax",
          "relu", "sigmoid", "with memories", "softmax by hand", "three operands",
          "all in one", "totals alone")  # fmt: skip


def by_hand(scores: Tensor) -> Tensor:
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    return shares / shares.sum(-1, keepdim=True)


def test_sums_over_tokens_without_a_softmax_count_every_member() -> None:
    blocks = {name: Projected(mix) for name, mix in SUMS.items()}
    assert unmerged(blocks, how="beside", sites=2 + len(LINEAR)) == set()


WEIGHTS = {
    "renormalised": lambda a: a / (a.sum(-1, keepdim=True) + 1e-6),
    "centred": lambda a: a - a.mean(-1, keepdim=True),
    "cut off": lambda a: (a - 0.05).relu(),
    "clamped": lambda a: a.clamp(min=1e-3) ** 2,
    "two steps": lambda a: a @ a,
    "symmetric": lambda a: a + a.transpose(-1, -2),
    "squared": lambda a: a * a,
    "scaled by head": lambda a: a * torch.tensor([0.5, 2.0], dtype=a.dtype).view(1, H, 1, 1),
    "cat of kinds": lambda a: torch.cat([a, a.log()], 1)[:, :H],
    "stack of kinds": lambda a: torch.stack([a, a.exp()], 1).mean(1),
    "stack of one kind": lambda a: torch.stack([a, 2 * a]).sum(0),
    "blended with a table": lambda a: 0.7 * a + 0.3 * BIAS.softmax(-1),
    "softmax over heads": lambda a: a.softmax(1),
    "dropped": lambda a: F.dropout(a, 0.3, training=False),
    "double precision": lambda a: a.double().neg().neg(),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("names", [list(WEIGHTS)[:8], list(WEIGHTS)[8:]], ids=["first", "second"])
def test_what_is_done_to_the_weights_sees_members_or_totals(names: list[str]) -> None:
    blocks = {name: Eager(None, WEIGHTS[name]) for name in names}
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


TABLES = {
    "einsum": lambda x: torch.einsum("bnc,mn->bmc", x, BIAS),
    "einsum, sequence first": lambda x: torch.einsum("mn,nbc->mbc", BIAS, x.transpose(0, 1)),
    "matmul": lambda x: BIAS @ x,
    "from the right": lambda x: x.transpose(1, 2) @ BIAS,
    "of positions alone": lambda x: joined(BIAS.softmax(-1) @ heads(x)),
}


def test_a_weight_for_each_position_needs_all_tokens() -> None:
    """Linformer, mixers: members of a group have weights of their own."""
    assert unmerged(TABLES, how="aside") == {"einsum", "matmul"}
