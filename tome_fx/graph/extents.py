"""Symbolic sizes as plain integers.

A captured shape holds integers and expressions of the batch's symbol. Each symbol is replaced by
a prime of its own that no model uses as a width, so that an extent holds the batch exactly when
the prime divides it, and factor arithmetic is integer arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.fx import Node

# Larger than any axis of a model, and small enough that products of a few stay exact and cheap.
_PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)


class Extents:
    """Turns sizes into integers; one instance a graph, since symbols belong to one graph."""

    def __init__(self, every_symbol: int | None = None) -> None:
        """``every_symbol``: a size for all symbols, in place of a prime for each."""
        self._every = every_symbol
        self._primes: dict[Any, int] = {}
        # By expression: a graph has thousands of sizes, of a few kinds.
        self._known: dict[Any, int] = {}

    def of(self, size: int | torch.SymInt) -> int:
        """The stand-in for a size: itself, or its expression with primes for the symbols."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression not in self._known:
            values = {symbol: self._prime(symbol) for symbol in expression.free_symbols}
            self._known[expression] = int(expression.subs(values))
        return self._known[expression]

    def shape(self, value: torch.Tensor) -> tuple[int, ...]:
        return tuple(self.of(size) for size in value.shape)

    def _prime(self, symbol: Any) -> int:
        if self._every is not None:
            return self._every
        if symbol not in self._primes:
            # Past the table any odd number serves: it only has to differ from what is there.
            known = len(self._primes)
            prime = _PRIMES[known] if known < len(_PRIMES) else _PRIMES[-1] + 2 * known
            self._primes[symbol] = prime
        return self._primes[symbol]


def same_size(size: Any, other: Any) -> bool:
    """Are both one number, or one expression of the batch?"""
    if isinstance(size, torch.SymInt) and isinstance(other, torch.SymInt):
        return bool(size.node.expr == other.node.expr)
    return isinstance(size, int) and isinstance(other, int) and size == other


def whole_size(value: torch.SymInt, tensors: Sequence[Any]) -> tuple[int, int] | None:
    """Which axis of which tensor ``value`` is the size of; what is no tensor is passed over."""
    for which, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.shape if isinstance(tensor, torch.Tensor) else ()):
            if same_size(size, value):
                return which, dim
    return None


def size_before(size: Any, before: Node) -> Node | int | None:
    """A size as the program has it before a node, or as an input shows it."""
    if isinstance(size, int):
        return size
    nodes: Iterable[Node] = before.graph.nodes
    for node in itertools.takewhile(lambda n: n is not before, nodes):
        value = node.meta.get("val")
        if same_size(value, size):
            return node
        place = whole_size(size, [value]) if node.op == "placeholder" else None
        if place is not None:
            with before.graph.inserting_before(before):
                read = before.graph.call_function(torch.ops.aten.sym_size.int, (node, place[1]))
            read.meta = {**before.meta, "val": size}
            return read
    return None


def known_size(size: Any) -> Any:
    """A size as it was in the example; None where it follows from values."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def settled(size: Any) -> Any:
    """A size that the model's code fixed as a number, though it is spelled as a symbol."""
    symbolic = isinstance(size, torch.SymInt) and size.node.expr.free_symbols
    return size if symbolic else int(size)


def tensor_value(node: Node) -> torch.Tensor | None:
    """The fake tensor that a node yields, or None for anything else."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def is_truth(node: Node) -> bool:
    """Does a node yield bools?"""
    value = tensor_value(node)
    return value is not None and value.dtype is torch.bool
