"""The index maps of several layers as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several layers as one tensor; with frames where any has them, and -1 behind."""
    rank = max(each.dim() for each in maps)
    same = [each if each.dim() == rank else each[:, None] for each in maps]
    sizes = [max(each.shape[dim] for each in same) for dim in range(1, rank)]
    return torch.stack([_padded(each, sizes) for each in same])


def _padded(each: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - own for size, own in zip(sizes, each.shape[1:], strict=True)]
    ends = [end for more in reversed(missing) for end in (0, more)]
    return pad(each, ends, value=-1)
