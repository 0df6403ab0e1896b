"""Ops over the grid of patches, and ops that make new values from a size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.common import (
    GRID,
    PAIRS,
    TINY,
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
DEEP, WIDE, HALF = random(C, 1, 3, 3) / 3, random(C, C, 1, 1) / 3, random(C, C, 1, 2) / 3
ALIKE, SHIFT, TABLE = (0,) * 12, random(C), tied(random(N, C), (0,))


def grid(x: Tensor) -> Tensor:
    """The patches as an image: ``[B, N, C] -> [B, C, 3, 4]``."""
    return x[:, 1:].transpose(1, 2).unflatten(2, GRID)


def row(image: Tensor) -> Tensor:
    """And back, without a class token."""
    return image.flatten(2).transpose(1, 2)


CONVOLUTIONS = {
    "depthwise": lambda x: row(F.conv2d(grid(x), DEEP, padding=1, groups=C)),
    "strided": lambda x: row(F.conv2d(grid(x), HALF, stride=(1, 2))),
    "pool": lambda x: F.avg_pool2d(grid(x), 2, 1),
    "largest": lambda x: F.max_pool2d(grid(x), 2, 1),
    "pool to one": lambda x: F.adaptive_avg_pool2d(grid(x), 1),
    "resized": lambda x: F.interpolate(grid(x), scale_factor=2.0, mode="bilinear"),
    "resized to nearest": lambda x: F.interpolate(grid(x), size=(5, 5)),
    "shuffled": lambda x: F.pixel_shuffle(grid(x), 2),
    "neighbours": lambda x: F.unfold(grid(x), 3, padding=1),
    "reflected": lambda x: F.pad(grid(x), (1, 1, 1, 1), mode="reflect"),
    "along the row": lambda x: F.conv1d(x.transpose(1, 2), DEEP[..., 0], padding=1, groups=C),
    "upside down": lambda x: grid(x).flip(2),
    "rolled": lambda x: grid(x).roll((1, 2), (2, 3)),
    "image with channels last": lambda x: x[:, 1:].unflatten(1, GRID).amax(2),
}


NEEDS_THE_GRID = {
    *("conv1d", "conv2d", "avg_pool2d", "max_pool2d", "upsample_bilinear2d", "upsample_nearest2d"),
    *("pixel_shuffle", "im2col", "pad", "flip", "roll", "amax"),
}


def test_the_grid_needs_all_tokens_and_says_so() -> None:
    found = [u for u in check(CONVOLUTIONS, how="aside") if u.kind == "unmerge"]
    assert {u.op.split(".")[1] for u in found} == NEEDS_THE_GRID
    assert len({u.module for u in found}) == len(CONVOLUTIONS) - 1  # a mean needs no grid


class Mixed(nn.Module):
    """Tokens that go on behind an op on their grid, which tells members of a group apart."""

    def forward(self, x: Tensor) -> Tensor:
        y = row(F.conv2d(grid(x), DEEP, padding=1, groups=C))
        return torch.cat([x[:, :1], x[:, 1:] + 0.1 * y], dim=1)


def test_what_told_members_apart_is_averaged_where_it_meets_the_stream() -> None:
    """The one approximation beyond the paper's, which the report lists."""
    kinds = {u.kind for u in check(Mixed(), labels=ALIKE, tolerance=0.5)}
    assert kinds == {"unmerge", "merge"}


REDUCED = {
    "keys of a coarser grid": lambda q, k, v: joined(
        F.scaled_dot_product_attention(heads(q), *(2 * [heads(row(F.avg_pool2d(grid(k), (1, 2))))]))
    ),
    "pooled and back": lambda q, k, v: q + F.adaptive_avg_pool2d(grid(k), 1).flatten(1)[:, None],
}


def test_coarser_keys_are_no_site() -> None:
    blocks = {name: Projected(mix) for name, mix in REDUCED.items()}
    assert unmerged(blocks, how="beside") == {"avg_pool2d"}


def test_windows_are_exact_on_groups_within_them() -> None:
    def windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t[:, 1:].reshape(-1, 2, H, D).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, N - 1, C)
        return F.pad(y, (0, 0, 1, 0))

    # All tokens stand on the first axis until something moves the places of a window.
    assert unmerged(Projected(windows), labels=PAIRS) == {"transpose"}


def test_a_window_that_is_the_whole_grid_needs_no_other_tokens() -> None:
    def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, 1, h, 1, w, C] -> [B * 1, h, w, C]``, and back."""

        def whole(x: Tensor) -> Tensor:
            x = x[:, 1:].reshape(-1, 1, GRID[0], 1, GRID[1], C)
            x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, N - 1, H, D)
            return x.transpose(1, 2)

        y = F.scaled_dot_product_attention(whole(q), whole(k), whole(v)).transpose(1, 2)
        y = y.reshape(-1, 1, 1, *GRID, C).permute(0, 1, 3, 2, 4, 5)
        return F.pad(y.reshape(-1, N - 1, C), (0, 0, 1, 0))

    assert unmerged(Projected(window), sites=3) == set()


def test_attention_along_the_rows_is_exact() -> None:
    """Rows of the grid are no stream of their own where the whole grid is one."""

    def rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            t[:, 1:].unflatten(1, GRID).unflatten(3, (H, D)).transpose(2, 3) for t in (q, k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, N - 1, C)
        return F.pad(y, (0, 0, 1, 0))

    assert unmerged(Projected(rows), labels=ALIKE) == {"transpose"}


POINTWISE = {
    "1x1 convolution": lambda x: F.conv1d(x.mT, WIDE[..., 0], SHIFT).mT,
    "padding of channels": lambda x: F.pad(x, (0, 3)).sin()[..., :C],
    "no padding": lambda x: F.pad(x, (0, 0)),
    "padding by tokens": lambda x: F.pad(x, (0, 0, 2, 3)).exp()[:, 2:-3],
}

FACTORIES = {
    "zeros": lambda x: x + torch.zeros(x.shape, dtype=x.dtype) + torch.ones(N, C),
    "full of the batch": lambda x: x * torch.full((x.shape[0], N, 1), 0.5, dtype=x.dtype),
    "new": lambda x: x + x.new_zeros(N, C) + x.new_full((x.shape[0], 1, C), 2.0),
    "like": lambda x: x + torch.ones_like(x[..., :1]),
    "a place for everyone": lambda x: x + F.embedding(torch.arange(N), TABLE),
    "a place by its length": lambda x: x + TABLE[torch.arange(x.shape[1])],
    "size in a divisor": lambda x: x.sum(1, keepdim=True) / x.shape[1],
}


def test_each_position_alone_stays_merged() -> None:
    assert unmerged(POINTWISE, how="beside") == set()


def test_new_values_meet_merged_tokens() -> None:
    assert unmerged(FACTORIES, how="beside") == set()
