"""Models with FlexAttention, and the same with what it means spelled out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from tests.drawing import randomise

C, HEADS, N = 16, 4, 24
# The numbers of the scores: images, heads, queries, keys.
PLACES = [torch.arange(size).reshape([-1 if i == axis else 1 for i in range(4)])
          for axis, size in enumerate((3, HEADS, N, N))]  # fmt: skip
FAR = torch.tensor(5.0)
DOCS = torch.arange(N) // 9


class Block(nn.Module):
    """Attention as ``attend(q, k, v, block)`` has it, and an MLP."""

    def __init__(self, key_heads: int) -> None:
        super().__init__()
        width = C // HEADS * key_heads
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, width), nn.Linear(C, width)
        self.out, self.mlp = nn.Linear(C, C), nn.Sequential(nn.Linear(C, C), nn.GELU())
        self.table = nn.Parameter(torch.zeros(2 * N - 1, HEADS))

    def forward(self, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        heads = [part.unflatten(2, (-1, C // HEADS)).transpose(1, 2)
                 for part in (self.q(x), self.k(x), self.v(x))]  # fmt: skip
        x = x + self.out(attend(*heads, self).transpose(1, 2).flatten(2))
        return x + self.mlp(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Asked:
    """What is asked of each score, as FlexAttention has it and as tensors.

    Attributes:
        score: ``score_mod`` of a block; ``bias [1|B, H, N, N]`` is what it adds.
        mask: ``mask_mod`` of ``valid [B, N]``; ``shown`` is the same for all.
        alike: tokens of equal patches are equal tokens.
    """

    score: Callable[[Block], Callable[..., Any]] | None = None
    bias: Callable[[Block], Tensor] | None = None
    mask: Callable[[Tensor], Callable[..., Any]] | None = None
    shown: Callable[[Tensor], Tensor] | None = None
    key_heads: int = HEADS
    alike: bool = True


def by_distance(block: Block) -> Tensor:
    return block.table.T[:, (PLACES[2] - PLACES[3])[0, 0] + N - 1][None]


PADDED: Any = {
    "mask": lambda valid: lambda b, h, q, k: valid[b, k],
    "shown": lambda valid: valid[:, None, None],
}
ASKED = {
    "nothing": Asked(),
    "fewer heads of keys": Asked(key_heads=2),
    "slope": Asked(
        lambda block: lambda s, b, h, q, k: s - (q - k).abs() * 0.1 + 2 * (h + 1),
        lambda block: ((PLACES[2] - PLACES[3]).abs() * -0.1).double() + 2 * (PLACES[1] + 1),
        alike=False,
    ),
    "a table of distances": Asked(
        lambda block: lambda s, b, h, q, k: s + block.table[q - k + N - 1, h],
        by_distance,
        alike=False,
    ),
    "a table of queries and keys": Asked(
        # Axis by axis, as transformers looks masks up.
        lambda block: lambda s, b, h, q, k: s + by_distance(block)[0][h][q, k],
        by_distance,
        alike=False,
    ),
    "near ones": Asked(
        lambda block: lambda s, b, h, q, k: torch.where((q - k).abs() < FAR, s, -torch.inf),
        shown=lambda valid: (PLACES[2] - PLACES[3]).abs() < FAR,
        alike=False,
    ),
    "padding": Asked(**PADDED),
    "padding and a table": Asked(
        lambda block: lambda s, b, h, q, k: s + block.table[q - k + N - 1, h],
        by_distance,
        **PADDED,
        key_heads=2,
        alike=False,
    ),
    "real pairs": Asked(
        mask=lambda valid: lambda b, h, q, k: valid[b, q] & valid[b, k],
        shown=lambda valid: valid[:, None, None] & valid[:, None, :, None],
    ),
    "documents": Asked(
        mask=lambda valid: lambda b, h, q, k: (DOCS[q] == DOCS[k]) & (valid[0, 0] | (k >= 0)),
        shown=lambda valid: (DOCS[:, None] == DOCS)[None, None],
        alike=False,
    ),
}


@dataclass(eq=False)
class Attend:
    """One of both ways to attend."""

    asked: Asked
    flexible: bool
    valid: Tensor
    mask: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.flexible and self.asked.mask is not None:
            b, n = self.valid.shape
            self.mask = create_block_mask(self.asked.mask(self.valid), b, None, n, n, "cpu")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
        asked, shared = self.asked, q.shape[1] != k.shape[1]
        if self.flexible:
            score = None if asked.score is None else asked.score(block)
            out = flex_attention(
                q, k, v, score_mod=score, block_mask=self.mask, scale=0.7, enable_gqa=shared
            )
            assert isinstance(out, Tensor)
            return out
        bias = None if asked.bias is None else asked.bias(block).to(q.dtype)
        shown = None if asked.shown is None else asked.shown(self.valid)
        if bias is not None and shown is not None:
            bias = bias + torch.zeros_like(shown, dtype=q.dtype).masked_fill(~shown, -torch.inf)
        mask = shown if bias is None else bias
        return scaled_dot_product_attention(q, k, v, mask, scale=0.7, enable_gqa=shared)


class Model(nn.Module):
    """Two blocks on ``x [B, N, 6]``, whose real tokens are those of ``valid [B, N]``."""

    def __init__(self, asked: Asked, flexible: bool = True) -> None:
        super().__init__()
        self.asked, self.flexible = asked, flexible
        self.stem, self.head = nn.Linear(6, C), nn.Linear(C, 5)
        self.blocks = nn.ModuleList(Block(asked.key_heads) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        attend = Attend(self.asked, self.flexible, valid)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, attend)
        real = valid[..., None].to(x.dtype)
        return (self.head(x) * real).sum(1) / real.sum(1)  # type: ignore[no-any-return]


def made(asked: Asked, flexible: bool = True, dtype: torch.dtype = torch.float64) -> Model:
    """The model with random weights, the same each time; tables of duplicates are empty."""
    model = Model(asked, flexible).eval()
    randomise(model, 0)
    return model.to(dtype)


def inputs(
    batch: int = 3, kinds: int = N, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Any:
    """Rows of ``kinds`` different patches, and which of them are real."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, kinds, 6, dtype=torch.float64, generator=generator).to(dtype)
    lengths = torch.tensor([N, N - 5, N - 9, N - 2])[:batch]
    return x[:, torch.arange(N) % kinds], torch.arange(N) < lengths[:, None]
