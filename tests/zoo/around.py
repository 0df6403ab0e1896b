"""Padding that goes round: an image of one colour then has the same token everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_pad, _conv2d, _unfold, _fold = F.pad, F.conv2d, F.unfold, F.fold


def without_borders(model: nn.Module) -> nn.Module:
    """The same model with convolutions whose own padding goes round."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and any(module._reversed_padding_repeated_twice):
            module.padding_mode = "circular"
    return model


@contextmanager
def padded_round() -> Iterator[None]:
    """The same for code of a model's own, where it puts zeros around a map."""
    with mock.patch.multiple(F, pad=_padded, conv2d=_convolved, unfold=_unfolded, fold=_folded):
        yield


def _padded(x: Tensor, pads: Any, mode: str = "constant", value: Any = None) -> Tensor:
    sides = list(zip(pads[::2], pads[1::2], strict=True))
    zeros = mode == "constant" and not value and x.dim() == 4 and x.is_floating_point()
    if not zeros or sum(map(any, sides)) > 2 or min(pads, default=0) < 0:
        return _pad(x, pads, mode, value)
    for axis, (before, after) in enumerate(sides):
        dim = x.dim() - 1 - axis
        if max(before, after) > x.shape[dim]:
            return _pad(x, pads, mode, value)
        first = x.narrow(dim, x.shape[dim] - before, before)
        x = torch.cat([first, x, x.narrow(dim, 0, after)], dim) if before + after else x
    return x


def _convolved(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
               *rest: Any, **named: Any) -> Tensor:  # fmt: skip
    if isinstance(padding, (tuple, list)) and any(padding):
        x, padding = _padded(x, [padding[1]] * 2 + [padding[0]] * 2), 0
    return _conv2d(x, weight, bias, stride, padding, *rest, **named)


def _unfolded(x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
              stride: Any = 1) -> Tensor:  # fmt: skip
    x = _padded(x, [padding] * 4) if padding else x
    return _unfold(x, kernel_size, dilation, 0, stride)


def _folded(x: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
            stride: Any = 1) -> Tensor:  # fmt: skip
    """What would fall over the edge of the map is added on its other side."""
    wide = [size + 2 * padding for size in output_size]
    whole = _fold(x, wide, kernel_size, dilation, 0, stride)
    for dim, size in zip((-2, -1), output_size, strict=True):
        inside = whole.narrow(dim, padding, size).clone()
        inside.narrow(dim, size - padding, padding).add_(whole.narrow(dim, 0, padding))
        inside.narrow(dim, 0, padding).add_(whole.narrow(dim, size + padding, padding))
        whole = inside
    return whole
