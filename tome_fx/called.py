"""Does another way of calling a model come to the same program?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tome_fx.capturing.calling import called_so
from tome_fx.capturing.examples import Example
from tome_fx.capturing.tensors import held_at, tensors_of
from tome_fx.capturing.unread import Looked
from tome_fx.errors import CaptureError, NoAttentionFoundError
from tome_fx.graph.same import is_equal, is_same
from tome_fx.locating import locate_program
from tome_fx.options import Settings
from tome_fx.program import Program


def is_called_alike(
    model: nn.Module | torch.export.ExportedProgram,
    example: Example | None,
    settings: Settings,
    values: Mapping[str, Any],
    program: Program,
    held: nn.Module,
) -> bool:
    """Is ``model`` captured as ``program`` when it is given other arguments?

    Args:
        values: by name, what is another than in the example.
        held: the module whose tensors ``program`` reads.
    """
    if not isinstance(model, nn.Module):
        return False
    own = {path for path, _, _ in tensors_of(model)}
    Looked.seen = False
    try:
        with _plainly():
            calls = called_so(model, values)
            if calls is None:
                return False
            other = locate_program(model, example, settings).program
            same = _serves(other) == _serves(program) and is_same(
                program.graph, other.graph, lambda a, b: _is_held(a, b, own, held, other)
            )
    except (Looked, CaptureError, NoAttentionFoundError):
        return False
    # Only export calls the ``forward`` of the module; symbolic tracing takes that of its class.
    return same and bool(calls) and other.how == "export" and not Looked.seen


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Within, no autocast: that of a call is none of the program's."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _is_held(a: str, b: str, own: set[str], held: nn.Module, other: Program) -> bool:
    """What the model holds may change later, so that equal numbers are no more than chance."""
    if a in own or b in own:
        return a == b or (a in own and b in own and held_at(held, a) is held_at(held, b))
    return is_equal(held_at(held, a), other.constants.get(b))


def _serves(program: Program) -> tuple[object, ...]:
    """What a program is for."""
    fixed = {name: str(value) for name, value in program.fixed.items()}
    fixed["unlike"] = str((program.mode, program.unlike)) if program.unlike else ""
    some = (program.static_batch, program.one_image, program.least, program.most, program.times)
    return (*some, program.how, program.batched, fixed, program.decided)
