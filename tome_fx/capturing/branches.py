"""Does the number of images, or of another input's rows, decide what a model's code does?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tome_fx.graph.extents import tensor_value
from tome_fx.program import Program

# Batches that are tried at least, and at most.
_FEW, _MOST = 66, 4096


def branches_on_batch(program: Program) -> bool:
    """Does the model's code compare a size that may change with a number?

    The program is that of one branch, and its graph does not say for which batches. What was asked
    while tracing is known to torch; some of it holds for every batch. What compares two such sizes
    is left alone, since ops ask that of their operands.
    """
    return any(not _always(condition) for condition in _asked(program))


def _asked(program: Program) -> Iterator[Any]:
    """What the code took for true of its dynamic sizes, all that are equal under one name."""
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    values = (tensor_value(node) for node in nodes)
    sizes: Iterator[Any] = (s for value in values if value is not None for s in value.shape)
    env = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    if env is None:
        return
    for guard in env.guards:
        yield guard.expr.xreplace(env.replacements)


def _always(condition: Any) -> bool:
    """Does it hold for every batch, as far as can be told?"""
    symbols = list(getattr(condition, "free_symbols", ()))
    if len(symbols) != 1:
        return True
    return all(condition.subs(symbols[0], batch) != False for batch in _likely(condition))  # noqa: E712


def _likely(condition: Any) -> Iterator[int]:
    """Where it may turn: at small batches, its own numbers, their quotients, their neighbours."""
    yield from range(2, _FEW)
    own = {abs(int(number)) for number in condition.atoms() if number.is_Integer} | {1}
    for number in own:
        for divisor in own - {0}:
            for batch in range(number // divisor - 1, number // divisor + 2):
                if _FEW <= batch <= _MOST:
                    yield batch
