"""Fused attention with every kind of mask, fewer keys than queries, latents, padding, no order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.common import (
    LABELS,
    TINY,
    B,
    C,
    D,
    H,
    N,
    Projected,
    check,
    heads,
    joined,
    random,
    tied,
    unmerged,
)

pytestmark = TINY
sdpa = F.scaled_dot_product_attention


def hides(*shape: int, dims: tuple[int, ...]) -> Tensor:
    """A boolean mask that shows most, and always the class token."""
    shown = random(*shape) > -0.7
    shown[..., 0] = True
    return tied(shown, dims)


def masked(mask: Tensor | None = None, **options: Any) -> Projected:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return joined(sdpa(heads(q), heads(k), heads(v), attn_mask=mask, **options))

    return Projected(mix)


MASKS = {
    "[N, N]": masked(tied(random(N, N), (0, 1))),
    "[N, N] bool": masked(hides(N, N, dims=(0, 1))),
    "[H, N, N]": masked(tied(random(H, N, N), (1, 2))),
    "[H, N, N] bool": masked(hides(H, N, N, dims=(1, 2))),
    "[1, H, N, N]": masked(tied(random(1, H, N, N), (2, 3))),
    "[1, 1, 1, N]": masked(tied(random(1, 1, 1, N), (3,))),
    "[1, 1, 1, N] bool": masked(hides(1, 1, 1, N, dims=(3,))),
    "[1, N]": masked(tied(random(1, N), (1,))),
    "[N, 1]": masked(tied(random(N, 1), (0,))),
    "[1, 1]": masked(random(1, 1)),
    "scale": masked(scale=0.7),
    "scale and mask": masked(tied(random(H, N, N), (1, 2)), scale=0.7),
    "no dropout": masked(dropout_p=0.0),
}


def test_masks_travel_with_the_keys() -> None:
    assert unmerged(MASKS, sites=2 + len(MASKS)) == set()


def expanded(k: Tensor) -> Tensor:
    return heads(k)[:, :1].expand(-1, H, -1, -1)


def repeated(k: Tensor) -> Tensor:
    """Shared keys as language models spell it."""
    return heads(k)[:, :1, None].expand(-1, -1, H, -1, -1).reshape(-1, H, N, D)


def folded(x: Tensor) -> Tensor:
    return heads(x).reshape(-1, N, D)


def zeros(x: Tensor) -> Tensor:
    """A key or value of zeros behind the others."""
    return torch.cat([heads(x), torch.zeros(x.shape[0], H, 1, D, dtype=x.dtype)], 2)


BIAS, KEYS = tied(random(H, N, N), (1, 2)), tied(random(1, H, N, D), (2,))
EXTRA, LATENTS = random(1, 1, C), random(1, 5, C)
SHAPES = {
    "grouped keys": lambda q, k, v: joined(
        sdpa(heads(q), heads(k)[:, :1], heads(v)[:, :1], enable_gqa=True)
    ),
    "one key head, expanded": lambda q, k, v: joined(sdpa(heads(q), expanded(k), expanded(v))),
    "one key head, repeated": lambda q, k, v: joined(sdpa(heads(q), repeated(k), repeated(v))),
    "one key head, interleaved": lambda q, k, v: joined(
        sdpa(heads(q), *(heads(t)[:, :1].repeat_interleave(H, 1) for t in (k, v)))
    ),
    "one head, three axes": lambda q, k, v: sdpa(q, k, v),
    "folded heads": lambda q, k, v: joined(sdpa(folded(q), folded(k), folded(v)).view(-1, H, N, D)),
    "folded heads and a mask": lambda q, k, v: joined(
        sdpa(*map(folded, (q, k, v)), attn_mask=BIAS.repeat(q.shape[0], 1, 1)).view(-1, H, N, D)
    ),
    "padded channels": lambda q, k, v: joined(
        sdpa(*(F.pad(heads(t), (0, 4)) for t in (q, k, v)), scale=0.5)[..., :D]
    ),
    "a key of zeros": lambda q, k, v: joined(sdpa(heads(q), zeros(k), zeros(v))),
    "a key of zeros by padding": lambda q, k, v: joined(
        sdpa(heads(q), F.pad(heads(k), (0, 0, 0, 1)), F.pad(heads(v), (0, 0, 0, 1)))
    ),
    "a learned key": lambda q, k, v: joined(
        sdpa(
            heads(q), *(heads(torch.cat([t, EXTRA.expand(t.shape[0], -1, -1)], 1)) for t in (k, v))
        )
    ),
    "normed queries and keys": lambda q, k, v: joined(
        sdpa(F.normalize(heads(q), dim=-1), F.layer_norm(heads(k), (D,)), heads(v), scale=3.0)
    ),
}


def test_shapes_of_attention_stay_merged() -> None:
    blocks = {name: Projected(mix) for name, mix in SHAPES.items()}
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


def turned(x: Tensor) -> Tensor:
    """``[B, N, H * D] -> [B, H, D, N]``."""
    return heads(x).mT


BETWEEN = random(H, D, D)
CHANNELS = {
    "scaled by hand": lambda q, k, v: joined(sdpa(*map(turned, (q, k, v)), scale=0.3).mT),
    "scaled by the number of tokens": lambda q, k, v: joined(sdpa(*map(turned, (q, k, v))).mT),
    "a mask of channels": lambda q, k, v: joined(
        sdpa(*map(turned, (q, k, v)), attn_mask=BETWEEN).mT
    ),
    "in order": lambda q, k, v: joined(sdpa(*map(turned, (q, k, v)), is_causal=True).mT),
    "normed along the tokens": lambda q, k, v: joined(
        sdpa(*(F.normalize(turned(t), dim=-1) for t in (q, k)), turned(v), scale=2.0).mT
    ),
    "grouped keys": lambda q, k, v: joined(
        sdpa(turned(q), turned(k)[:, :1], turned(v)[:, :1], enable_gqa=True).mT
    ),
    "three axes": lambda q, k, v: sdpa(q.mT, k.mT, v.mT).mT,
}


def test_attention_between_channels_counts_every_member() -> None:
    blocks = {name: Projected(mix) for name, mix in CHANNELS.items()}
    assert unmerged(blocks, how="beside", sites=2 + len(blocks)) == set()


def test_channels_that_are_not_summed_over_the_tokens_are_no_attention_between_them() -> None:
    table = tied(random(1, H, D, N), (3,))
    mixed = {
        "a table as keys": lambda x: sdpa(
            turned(x), table.expand(x.shape[0], -1, -1, -1), turned(x)
        )
    }
    assert unmerged(mixed, how="aside") == {"scaled_dot_product_attention"}


def pooled(x: Tensor) -> Tensor:
    """Latent queries that read all tokens."""
    latents = LATENTS.expand(x.shape[0], -1, -1)
    return joined(sdpa(heads(latents), heads(x), heads(x.sin())))


READERS = {
    "latents": pooled,
    "latents without a batch": lambda x: joined(
        (heads(LATENTS) @ heads(x).mT).softmax(-1) @ heads(x)
    ),
    "latents that come back": lambda x: joined(
        sdpa(heads(x), *(2 * [heads(pooled(x))]))
    ),
    "class token alone": lambda x: torch.cat(
        [joined(sdpa(heads(x[:, :1]), heads(x), heads(x))), x[:, 1:]], 1
    ),
    "one query for all": lambda x: joined(
        sdpa(heads(x.mean(1, keepdim=True)), heads(x), heads(x))
    ).expand_as(x),
    "positions as keys": lambda x: joined(
        sdpa(heads(x), KEYS.expand(x.shape[0], -1, -1, -1), heads(x))
    ),
    "soft clusters": lambda x: (x @ LATENTS.mT).softmax(-1) @ LATENTS,
    "slots": lambda x: by_slot((x @ LATENTS.mT).softmax(-1)).mT @ x,
}  # fmt: skip


def by_slot(shares: Tensor) -> Tensor:
    return shares / shares.sum(1, keepdim=True)


def test_other_queries_weigh_merged_keys() -> None:
    assert unmerged(READERS, how="beside") == set()


def test_maps_that_leave_the_model_have_all_tokens() -> None:
    def shares(x: Tensor) -> Tensor:
        return (heads(x) @ heads(x).mT).softmax(-1)

    maps = {
        "all": shares,
        "mean": lambda x: shares(x).mean(1),
        "of the class token": lambda x: shares(x)[:, :, 0, 1:],
        "logits": lambda x: heads(x) @ heads(x).mT,
    }
    assert unmerged(maps, how="aside") == set()


def test_causal_attention_is_refused_and_exact() -> None:
    causal = {"sdpa": lambda x: joined(sdpa(heads(x), heads(x), heads(x), is_causal=True))}
    found = check(causal, how="aside")
    assert {u.op for u in found} == {"aten.scaled_dot_product_attention.default"}
    assert "causal" in found[0].reason


class Torch(nn.Module):
    """`nn.MultiheadAttention` with its options, and a residual."""

    def __init__(self, first: bool = True, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, H, batch_first=first, **options)
        self.first, self.weights = first, weights

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else x.transpose(0, 1)
        y, shares = self.attention(y, y, y, need_weights=self.weights)
        y = y if self.first else y.transpose(0, 1)
        return x + y if shares is None else x + y + shares.mean((1, 2))[:, None, None]


def test_attention_of_torch_stays_merged() -> None:
    blocks = {
        "plain": Torch(),
        "sequence first": Torch(first=False),
        "weights": Torch(weights=True),
        "learned key": Torch(add_bias_kv=True),
        "zero key": Torch(add_zero_attn=True),
    }
    assert unmerged(blocks, sites=2 + len(blocks)) == set()


# The last four patches are padding, and no duplicates: what merges are visible tokens.
PADDED = (0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5)
SHOWN = (torch.arange(N) < N - 4).expand(B, N).clone()
INPUTS = {
    "[B, 1, 1, N] bool": (SHOWN[:, None, None], lambda x, m: (x, m)),
    "[B, N] bool": (SHOWN, lambda x, m: (x, m[:, None, None, :])),
    "[B, N] float": (SHOWN, lambda x, m: (x, (1.0 - m[:, None, None].to(x.dtype)) * -1e4)),
    "[B, H, N, N]": (tied(random(B, H, N, N), (2, 3)), lambda x, m: (x, m)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", INPUTS)
def test_masks_that_come_in_travel_with_the_keys(name: str) -> None:
    value, read = INPUTS[name]

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        x, mask = read(x, mask)
        return x + joined(sdpa(heads(x), heads(x), heads(x.sin()), attn_mask=mask))

    labels = LABELS if value.dim() == 4 and value.shape[2] == N else PADDED
    assert unmerged(attend, sites=3, extra=(value,), labels=labels) == set()
