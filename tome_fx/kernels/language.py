"""Triton where it is installed; without it the kernels are names that nobody calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without CUDA come without it
    triton = None
    tl = None

__all__ = ["INTERPRETED", "jit", "power_of_two", "tl"]

INTERPRETED: bool = triton is not None and bool(triton.knobs.runtime.interpret)


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, or the function itself without Triton."""
    return function if triton is None else triton.jit(function)


def power_of_two(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``count`` and ``least``: the extent of a block."""
    return max(least, 1 << max(int(count) - 1, 0).bit_length())
