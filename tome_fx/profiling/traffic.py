"""Bytes that a call must move at the least: each operand read once, each result written once."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tome_fx.graph.insides import parts


def moved(given: Any, result: Any) -> int:
    """Bytes of the tensors in ``given`` and ``result``; 0 where ``result`` is a view of them.

    What is held once for a whole axis (an expanded tensor) counts once. What an op makes and drops
    inside of it does not count: this is the least that any program for it moves.
    """
    operands = {id(value): value for value in tensors(given)}.values()
    results = tensors(result)
    held = {_place(part) for value in operands for part in parts(value)}
    if all(_place(part) in held for value in results for part in parts(value)):
        return 0
    return sum(map(size_of, operands)) + sum(map(size_of, results))


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def tensors(value: Any) -> list[Tensor]:
    """The tensors among the leaves of nested containers."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def size_of(value: Tensor) -> int:
    """Bytes that a tensor refers to, an axis of stride 0 once."""
    own = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
    return math.prod(own) * value.element_size()
