"""A backend for tests, and what it is held against."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

import tome_fx

R = 2


def backend(r: Any = R, inner: str = "aot_eager", **options: Any) -> tome_fx.Backend:
    return tome_fx.backend(r, inner_backend=inner, min_ratio=0, **options)


def expected(model: nn.Module, r: Any = R) -> Any:
    return tome_fx.transform(model, r, min_ratio=0)


def listening(model: Any, x: Tensor) -> tuple[Any, str]:
    """The result, and what was warned about."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = model(x)
    return result, "\n".join(str(w.message) for w in told if w.category is tome_fx.ToMeWarning)
