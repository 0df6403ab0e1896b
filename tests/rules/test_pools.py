"""Pooling to one place is a mean or a maximum over tokens; any other is an op over the grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tests.rules.common import GRID, PATCHES, TINY, N, unmerged

pytestmark = TINY


def rows(x: Tensor) -> Tensor:
    """``[B, N, C] -> [B, C, N]``."""
    return x.transpose(1, 2)


def grid(x: Tensor) -> Tensor:
    """The patches as ``[B, C, h, w]``."""
    return rows(x[:, 1:]).unflatten(2, GRID)


WHOLE = {
    "mean by size": lambda x: F.adaptive_avg_pool1d(rows(x), 1).flatten(1),
    "maximum by size": lambda x: F.adaptive_max_pool1d(rows(x), 1)[..., 0],
    "mean of a window": lambda x: F.avg_pool1d(rows(x), N),
    "mean of a window of all": lambda x: F.avg_pool1d(rows(x), x.shape[1]).squeeze(-1),
    "maximum of a window": lambda x: F.max_pool1d(rows(x)[:, :, 1:], PATCHES),
    "both": lambda x: F.adaptive_avg_pool1d(rows(x), 1) + F.adaptive_max_pool1d(rows(x), 1),
}
GRIDS = {
    "mean": lambda x: F.avg_pool2d(grid(x), GRID),
    "maximum": lambda x: F.max_pool2d(grid(x), kernel_size=GRID),
    "maximum by size": lambda x: F.adaptive_max_pool2d(grid(x), 1),
    "a window of all sides": lambda x: F.avg_pool2d(grid(x), grid(x).size()[2:]),
}
PARTS = {
    "half": lambda x: F.avg_pool1d(rows(x)[:, :, 1:], PATCHES // 2),
    "around": lambda x: F.avg_pool1d(rows(x), N, padding=1, stride=N),
    "a square": lambda x: F.avg_pool2d(grid(x), [3]),
    "halves by size": lambda x: F.adaptive_max_pool1d(rows(x), 2),
    "with places": lambda x: F.adaptive_max_pool1d((1e6 * rows(x)).round(), 1, True)[1],
}


def test_a_pool_over_all_tokens_is_a_reduction() -> None:
    assert unmerged(WHOLE, how="beside") == set()


def test_a_pool_over_the_whole_grid_too() -> None:
    assert unmerged(GRIDS, how="beside") <= {"unflatten"}


def test_what_is_pooled_to_several_places_needs_all_tokens() -> None:
    expected = {"avg_pool1d", "avg_pool2d", "adaptive_max_pool1d"}
    assert unmerged(PARTS, how="aside") - {"unflatten"} == expected


def test_a_divisor_of_its_own_is_no_mean() -> None:
    divided = {"sum": lambda x: F.avg_pool2d(grid(x), GRID, divisor_override=1)}
    assert "avg_pool2d" in unmerged(divided, how="aside")


def test_images_are_not_pooled() -> None:
    def pooled(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(x[..., 0].T, 1)  # [N, B] -> [N, 1]

    assert unmerged({"images": pooled}, how="aside") == {"adaptive_avg_pool1d"}
