"""Does the number of images, or of another input's rows, decide what a model's code does?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._sympy.printers import PythonPrinter

from tome_fx.capturing.blame import TORCH
from tome_fx.graph.extents import tensor_value
from tome_fx.program import Program

# Of torch's files, whence ops ask: what reads the model's code for a strict export and asks in its
# name, and what calls a module, seen where its own code has no file.
_READERS = (os.path.dirname(torch._dynamo.__file__) + os.sep, torch.nn.modules.module.__file__)
# Batches that are tried, and groups.
_MOST, _FEW = 4096, 66
_ANY = 1 << 31
# What conditions are written with.
_FUNCTIONS = {"math": math, "torch": torch}


def batches_of(program: Program, batch: int) -> tuple[int, int | None] | None:
    """The fewest and the most images, around ``batch``, that a program is for.

    The model's code may compare a size that may change with a number, or with another such: the
    program is that of one branch, and its graph does not say for which batches. What was asked
    while tracing is known to torch; some of it holds for every batch. None where it is for
    ``batch`` alone, as far as can be told.
    """
    branches = _branches(program)
    if not branches:
        return 1, None
    if len(_symbols(program)) > 1 or batch > _MOST:
        return None
    kept = [all(asked.holds(n) for asked in branches) for n in range(_MOST + 1)]
    if not kept[batch]:
        return None
    least = most = batch
    while least > 2 and kept[least - 1]:
        least -= 1
    while most < _MOST and kept[most + 1]:
        most += 1
    # Of one image ops ask more than holds: torch takes for granted that there are several.
    if least == 2 and all(asked.holds(1) for asked in branches if asked.by_model):
        least = 1
    return None if least == most else (least, None if most == _MOST else most)


def within(program: Program, exported: torch.export.ExportedProgram) -> Program:
    """The program for the batches that an exported one is for, as its user or its code says."""
    images = next(_sizes(program), None)
    limits = None if images is None else exported.range_constraints.get(images.node.expr)
    if limits is None:
        return program
    least, most = (int(end) if end.is_Integer else None for end in (limits.lower, limits.upper))
    # Every export has one image left out, and the last whole number.
    return replace(
        program,
        least=least if least is not None and least > 2 else 1,
        most=most if most is not None and most < _ANY else None,
    )


def group_of(program: Program, batch: int) -> int | None:
    """In groups of how many the model's code takes its images, if a program is for all multiples.

    Frames of a clip, say, or pairs. The example's ``batch`` is such a multiple, of two groups at
    least: of one, as of one image, ops ask more than holds.
    """
    branches = _branches(program)
    if len(_symbols(program)) != 1:
        return None
    for times in range(2, min(batch, _FEW) // 2 + 1):
        tried = range(2 * times, _MOST + 1, times)
        if batch % times == 0 and all(asked.holds(n) for asked in branches for n in tried):
            return times
    return None


@dataclass(frozen=True)
class _Asked:
    """What was taken for true of a size that may change.

    Attributes:
        symbols: the sizes, all that are equal under one name.
        by_model: whether it was the model's own code that asked, not an op.
        code: the condition as code of the size, if it is of one.
    """

    symbols: frozenset[Any]
    by_model: bool
    code: Any

    def holds(self, size: int) -> bool:
        """Does it hold for this size? Not where it cannot be asked: pieces of it would be none."""
        try:
            return bool(eval(self.code, _FUNCTIONS, {str(name): size for name in self.symbols}))
        except Exception:
            return False

    @property
    def always(self) -> bool:
        """Does it hold for every batch, as far as can be told?

        Ops ask two sizes whether they are the same, so that they may broadcast, and more of the
        like.
        """
        if len(self.symbols) != 1:
            return not self.symbols or not self.by_model
        return all(map(self.holds, range(2, _MOST + 1)))


def _branches(program: Program) -> list[_Asked]:
    """What does not hold for every batch."""
    return [asked for asked in _asked(program) if not asked.always]


def _asked(program: Program) -> Iterator[_Asked]:
    """What was asked of dynamic sizes while a program was traced."""
    size = next(_sizes(program), None)
    if size is None:
        return
    env, written = size.node.shape_env, PythonPrinter()
    for guard in env.guards:
        place = getattr(guard.sloc.framework_loc, "filename", "")
        by_op = place.startswith(TORCH) and not place.startswith(_READERS)
        condition = guard.expr.xreplace(env.replacements)
        symbols = frozenset(getattr(condition, "free_symbols", ()))
        text = written.doprint(condition) if len(symbols) == 1 else "True"
        yield _Asked(symbols, not by_op, compile(text, "<condition>", "eval"))


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
