"""How much of a difference between two computations of one value may be rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Graph

from tome_fx.graph.extents import tensor_value


def precision_of(graph: Graph) -> float:
    """The coarsest relative precision of the floating values in a graph."""
    values = [value for node in graph.nodes if (value := tensor_value(node)) is not None]
    dtypes = {v.dtype for v in values if v.is_floating_point() or v.is_complex()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def excess(one: Tensor, other: Tensor, precision: float) -> float:
    """The difference as a multiple of what may be rounding; infinite where a number is lost."""
    a, gap = _known(one, other)
    norm = float(torch.linalg.vector_norm(gap))
    # Where all else cancels, rounding of values near one is left.
    floor = 64 * precision * math.sqrt(gap.numel())
    allowed = math.sqrt(precision) * float(torch.linalg.vector_norm(a)) + floor
    if norm == 0.0:
        return 0.0
    return norm / allowed if allowed and math.isfinite(norm) else math.inf


def relative(one: Tensor, other: Tensor) -> float:
    a, gap = _known(one, other)
    norm = float(torch.linalg.vector_norm(a))
    return float(torch.linalg.vector_norm(gap)) / norm if norm else math.inf


def _known(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What the model has numbers for, and the difference there."""
    a, b = _plain(one), _plain(other)
    known = a.isfinite()
    return a[known], (a - b)[known]


def _plain(value: Tensor) -> Tensor:
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.detach().to("cpu", torch.float64)
