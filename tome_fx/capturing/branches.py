"""Does the number of images, or of another input's rows, decide what a model's code does?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from tome_fx.capturing.blame import TORCH
from tome_fx.graph.extents import tensor_value
from tome_fx.program import Program

# Of torch's files, whence ops ask: what reads the model's code for a strict export and asks in its
# name, and what calls a module, seen where its own code has no file.
_READERS = (os.path.dirname(torch._dynamo.__file__) + os.sep, torch.nn.modules.module.__file__)
# Batches that are tried at least, and at most.
_FEW, _MOST = 66, 4096


def branches_on_batch(program: Program) -> bool:
    """Does the model's code compare a size that may change with a number, or with another such?

    The program is that of one branch, and its graph does not say for which batches. What was asked
    while tracing is known to torch; some of it holds for every batch.
    """
    return any(not _always(condition, by_model) for condition, by_model in _asked(program))


def _asked(program: Program) -> Iterator[tuple[Any, bool]]:
    """What was taken for true of dynamic sizes, all that are equal under one name.

    And whether it was the model's own code that asked, not an op.
    """
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    values = (tensor_value(node) for node in nodes)
    sizes: Iterator[Any] = (s for value in values if value is not None for s in value.shape)
    env = next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)
    if env is None:
        return
    for guard in env.guards:
        place = getattr(guard.sloc.framework_loc, "filename", "")
        by_op = place.startswith(TORCH) and not place.startswith(_READERS)
        yield guard.expr.xreplace(env.replacements), not by_op


def _always(condition: Any, by_model: bool) -> bool:
    """Does it hold for every batch, as far as can be told?

    Ops ask two sizes whether they are the same, so that they may broadcast, and more of the like.
    """
    symbols = list(getattr(condition, "free_symbols", ()))
    if len(symbols) != 1:
        return not symbols or not by_model
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
