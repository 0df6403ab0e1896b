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


def batches_of(program: Program, batch: int) -> tuple[int, int | None] | None:
    """The fewest and the most images, around ``batch``, that a program is for.

    The model's code may compare a size that may change with a number, or with another such: the
    program is that of one branch, and its graph does not say for which batches. What was asked
    while tracing is known to torch; some of it holds for every batch. None where it is for
    ``batch`` alone, as far as can be told.
    """
    asked = list(_asked(program))
    branches = [asking for asking in asked if not _always(*asking)]
    if not branches:
        return 1, None
    symbols = _symbols(program)
    if len(symbols) > 1:
        return None
    (size,) = symbols
    tried = sorted({batch, *(n for condition, _ in branches for n in _likely(condition))})
    kept = [n for n in tried if all(_holds(condition, size, n) for condition, _ in branches)]
    if batch not in kept:
        return None
    place = tried.index(batch)
    first = next((i for i in range(place, -1, -1) if tried[i] not in kept), -1)
    last = next((i for i in range(place, len(tried)) if tried[i] not in kept), len(tried))
    # Of one image ops ask more than holds: torch takes for granted that there are several.
    one = first < 0 and all(_holds(c, size, 1) for c, by_model in branches if by_model)
    least = 1 if one else tried[first + 1]
    most = None if last == len(tried) else tried[last - 1]
    return None if least == most else (least, most)


def group_of(program: Program, batch: int) -> int | None:
    """In groups of how many the model's code takes its images, if a program is for all multiples.

    Frames of a clip, say, or pairs. The example's ``batch`` is such a multiple, of two groups at
    least: of one, as of one image, ops ask more than holds.
    """
    branches = [
        condition for condition, by_model in _asked(program) if not _always(condition, by_model)
    ]
    symbols = _symbols(program)
    if len(symbols) != 1:
        return None
    (size,) = symbols
    for times in range(2, min(batch, _FEW) // 2 + 1):
        tried = range(2 * times, _FEW * 2, times)
        if batch % times == 0 and all(_holds(c, size, n) for c in branches for n in tried):
            return times
    return None


def _asked(program: Program) -> Iterator[tuple[Any, bool]]:
    """What was taken for true of dynamic sizes, all that are equal under one name.

    And whether it was the model's own code that asked, not an op.
    """
    size = next(_sizes(program), None)
    if size is None:
        return
    env = size.node.shape_env
    for guard in env.guards:
        place = getattr(guard.sloc.framework_loc, "filename", "")
        by_op = place.startswith(TORCH) and not place.startswith(_READERS)
        yield guard.expr.xreplace(env.replacements), not by_op


def _sizes(program: Program) -> Iterator[Any]:
    """The sizes of inputs that may change."""
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    values = (tensor_value(node) for node in nodes)
    sizes: Iterator[Any] = (s for value in values if value is not None for s in value.shape)
    yield from (size for size in sizes if isinstance(size, torch.SymInt))


def _symbols(program: Program) -> set[Any]:
    """The numbers of images, texts, ... that inputs have, each that is equal to another once."""
    expressions = (s.node.expr.xreplace(s.node.shape_env.replacements) for s in _sizes(program))
    return {symbol for expression in expressions for symbol in expression.free_symbols}


def _always(condition: Any, by_model: bool) -> bool:
    """Does it hold for every batch, as far as can be told?

    Ops ask two sizes whether they are the same, so that they may broadcast, and more of the like.
    """
    symbols = list(getattr(condition, "free_symbols", ()))
    if len(symbols) != 1:
        return not symbols or not by_model
    return all(_holds(condition, symbols[0], batch) for batch in _likely(condition))


def _holds(condition: Any, symbol: Any, batch: int) -> bool:
    try:
        return bool(condition.subs(symbol, batch) != False)  # noqa: E712
    except ZeroDivisionError:  # a part of the batch is what another size is divided by
        return False


def _likely(condition: Any) -> Iterator[int]:
    """Where it may turn: at small batches, its own numbers, their quotients, their neighbours."""
    yield from range(2, _FEW)
    own = {abs(int(number)) for number in condition.atoms() if number.is_Integer} | {1}
    for number in own:
        for divisor in own - {0}:
            for batch in range(number // divisor - 1, number // divisor + 2):
                if _FEW <= batch <= _MOST:
                    yield batch
