"""Towers without an axis of images: the patches of one image, or of several, are rows of the input.

So Qwen-VL, GLM-V and their kin are made. What such code spells in many ways is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CHANNELS, CLASSES = 24, 5
# The first channel of a patch that is none.
PADDING = -9.0


@dataclass(frozen=True)
class Packed:
    """A tower.

    Attributes:
        lengths: patches of each image of a call, in one row.
        attention: ``sdpa`` on ``[1, H, N, D]``, of stretches that a split gives, or their borders
            in a row that is ``sliced`` or that ``each`` makes anew; ``heads`` on ``[H, N, D]``,
            ``einsum`` or ``matmul`` with a softmax, ``bare`` on one head without an axis for it,
            ``shared`` on one head of keys for all of queries.
        position: ``learned`` adds a table, ``rotary`` multiplies queries and keys by one.
        token: a class token in front of the row.
        end: ``rows`` returns all tokens, ``mean`` and ``first`` read out one row, ``merger`` joins
            each four neighbours.
        mask: ``rows`` hides padding by a row of truths, ``pairs`` by a row for each
            patch, ``blocks`` lets the patches of an image see each other alone.
        around: the tower takes ``[1, N, C]`` and takes the image out of it.
    """

    lengths: tuple[int, ...] = (24,)
    attention: str = "sdpa"
    position: str = "learned"
    token: bool = False
    end: str = "rows"
    mask: str = ""
    around: bool = False
    depth: int = 3

    @property
    def patches(self) -> int:
        return sum(self.lengths)

    def build(self) -> Tower:
        torch.manual_seed(0)
        tower = Tower(self).double().eval()
        if self.mask in ("rows", "pairs"):
            tower.embed.weight.data[:, 0] = 0  # nothing but the mask tells padding
        return tower

    def rows(self, seed: int = 1) -> Tensor:
        """Random patches."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(self.patches, 12, generator=generator, dtype=torch.float64)
        return rows[None] if self.around else rows

    def duplicates(self, seed: int = 1) -> Tensor:
        """Patches of three kinds."""
        generator = torch.Generator().manual_seed(seed)
        kinds = torch.randn(3, 12, generator=generator, dtype=torch.float64)
        rows = kinds[torch.randint(0, 3, (self.patches,), generator=generator)]
        return rows[None] if self.around else rows


class Attention(nn.Module):
    def __init__(self, config: Packed) -> None:
        super().__init__()
        self.config = config
        self.heads = 1 if config.attention == "bare" else 2
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, turn: Tensor, lengths: list[int], seen: Tensor | None) -> Tensor:
        n, d = x.shape[0], CHANNELS // self.heads
        if self.config.attention == "bare":
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.proj(((q * turn) @ (k * turn).T / d**0.5).softmax(-1) @ v)  # type: ignore[no-any-return]
        q, k, v = self.qkv(x).reshape(n, 3, self.heads, d).permute(1, 0, 2, 3).unbind(0)
        q, k = (t * turn[:, None, :d] for t in (q, k))
        if self.config.attention == "einsum":
            logits = torch.einsum("qhd,khd->hqk", q, k) / d**0.5
            weights = (logits if seen is None else logits.masked_fill(~seen, -1e9)).softmax(-1)
            return self.proj(torch.einsum("hqk,khd->qhd", weights, v).reshape(n, -1))  # type: ignore[no-any-return]
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        if self.config.attention == "shared":
            q, k, v = (t.unsqueeze(0) for t in (q, k[:1], v[:1]))
            out = scaled_dot_product_attention(q, k, v, enable_gqa=True)[0]
        elif self.config.attention == "matmul":
            out = (q @ k.mT / d**0.5).softmax(-1) @ v
        elif self.config.attention == "heads":
            out = scaled_dot_product_attention(q, k, v, seen)
        else:
            each = zip(*(self.stretches(t, lengths) for t in (q, k, v)), strict=True)
            out = torch.cat([scaled_dot_product_attention(*one) for one in each], dim=2)[0]
        return self.proj(out.transpose(0, 1).reshape(n, -1))  # type: ignore[no-any-return]

    def stretches(self, heads: Tensor, lengths: list[int]) -> Sequence[Tensor]:
        """``[1, H, n, D]`` of each image, out of ``[H, N, D]``."""
        row, borders = heads.unsqueeze(0), list(pairwise(accumulate(lengths, initial=0)))
        if self.config.attention == "sliced":
            return [row[:, :, start:end] for start, end in borders]
        if self.config.attention == "each":
            return [heads[:][None, :, start:end] for start, end in borders]
        return row.split(lengths, dim=2)


class Block(nn.Module):
    def __init__(self, config: Packed) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(CHANNELS, 2 * CHANNELS), nn.GELU(), nn.Linear(2 * CHANNELS, CHANNELS)
        )

    def forward(self, x: Tensor, turn: Tensor, lengths: list[int], seen: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), turn, lengths, seen)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Tower(nn.Module):
    def __init__(self, config: Packed) -> None:
        super().__init__()
        self.config = config
        tokens = config.patches + config.token
        self.embed = nn.Linear(12, CHANNELS)
        self.first = nn.Parameter(torch.randn(1, CHANNELS)) if config.token else None
        # Equal at all places, so that equal patches stay equal.
        table = torch.randn(1, CHANNELS).expand(tokens, -1).clone()
        self.table = nn.Parameter(table)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(CHANNELS)
        wide = 4 * CHANNELS if config.end == "merger" else CHANNELS
        self.head = nn.Linear(wide, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        config, seen = self.config, None
        if config.mask == "rows":
            seen = (x[:, 0] > PADDING)[None]
        elif config.mask == "pairs":
            real = x[:, 0] > PADDING
            seen = real[:, None] & real[None]
        elif config.mask == "blocks":
            seen, start = torch.zeros(len(x), len(x), dtype=torch.bool), 0
            for length in config.lengths:
                seen[start : start + length, start : start + length] = True
                start += length
        x = self.embed(x[0] if config.around else x)
        if self.first is not None:
            x = torch.cat([self.first, x])
        turn = torch.ones_like(self.table)
        if config.position == "learned":
            x = x + self.table
        else:
            turn = self.table.cos() + 1
        row = [x.shape[0]] if lengths is None else lengths.tolist()
        for block in self.blocks:
            x = block(x, turn, row, seen)
        x = self.norm(x)
        if config.end == "mean":
            x = x.mean(0)
        elif config.end == "first":
            x = x[0]
        elif config.end == "merger":
            x = x.reshape(-1, 4 * CHANNELS)
        x = self.head(x)
        return x[None] if config.around else x


@st.composite
def towers(draw: st.DrawFn) -> Packed:
    """A tower for one image."""
    token = draw(st.booleans())
    ends = ("rows", "mean", "first") if token else ("rows", "mean", "merger")
    return Packed(
        lengths=(draw(st.sampled_from([24, 32, 40])),),
        attention=draw(st.sampled_from(["sdpa", "heads", "einsum", "matmul", "bare", "shared"])),
        position=draw(st.sampled_from(["learned", "rotary"])),
        token=token,
        end=draw(st.sampled_from(ends)),
        around=draw(st.booleans()),
        depth=draw(st.integers(2, 3)),
    )
