"""How much of a difference between two computations of one value may be rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Graph

from tome_fx.graph.extents import tensor_value

# Of whole numbers that follow from others (an argmax), rounding turns few.
_TURNED = 0.1


def precision_of(graph: Graph) -> float:
    """The coarsest relative precision of the floating values in a graph."""
    values = [value for node in graph.nodes if (value := tensor_value(node)) is not None]
    dtypes = {value.dtype for value in values if is_inexact(value)}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def is_inexact(value: Tensor) -> bool:
    """Does rounding reach such numbers by themselves?"""
    return value.is_floating_point() or value.is_complex()


def allowed(norm: float, numel: int, precision: float) -> float:
    """The norm of a difference that may be rounding, for a value of that norm.

    Where all else cancels, rounding of values near one is left.
    """
    return math.sqrt(precision) * norm + 4 * precision * math.sqrt(numel)


def excess(one: Tensor, other: Tensor, precision: float) -> float:
    """The difference as a multiple of what may be rounding; infinite where a number is lost."""
    a, b = _plain(one), _plain(other)
    if not is_inexact(one):
        return float((a != b).double().mean()) / _TURNED if a.numel() else 0.0
    gap, norm = _gap(a, b), norm_of(one)
    return gap / allowed(norm, a.numel(), precision) if gap and math.isfinite(gap) else gap


def relative(one: Tensor, other: Tensor) -> float:
    """The norm of the difference over that of the first."""
    norm = norm_of(one)
    return _gap(_plain(one), _plain(other)) / norm if norm else math.inf


def norm_of(value: Tensor) -> float:
    """The norm of what is finite."""
    value = _plain(value)
    return float(torch.linalg.vector_norm(value[value.isfinite()]))


def _gap(a: Tensor, b: Tensor) -> float:
    """The norm of the difference where the first is a number."""
    unequal = ~((a == b) | a.isnan())
    gap = float(torch.linalg.vector_norm((a - b)[unequal]))
    return gap if math.isfinite(gap) else math.inf


def _plain(value: Tensor) -> Tensor:
    wide = torch.complex128 if value.is_complex() else torch.float64
    return value.detach().to_dense().to("cpu", wide)
