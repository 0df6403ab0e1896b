"""Does another way of calling a model come to the same program?"""

from __future__ import annotations

import torch
from torch import nn

from tome_fx.capturing.calling import called_so
from tome_fx.capturing.examples import Example
from tome_fx.capturing.tensors import held_at
from tome_fx.capturing.unread import Looked
from tome_fx.capturing.ways import Way
from tome_fx.errors import CaptureError, NoAttentionFoundError
from tome_fx.graph.same import is_same
from tome_fx.locating import locate_program
from tome_fx.options import Settings
from tome_fx.program import Program


def is_called_alike(
    model: nn.Module | torch.export.ExportedProgram,
    example: Example | None,
    settings: Settings,
    way: Way,
    program: Program,
    held: nn.Module,
) -> bool:
    """Is ``model`` captured as ``program`` when it is called in another way?

    Args:
        way: the arguments that are others than in the example, see :class:`Ways`.
        held: the module whose tensors ``program`` reads.
    """
    if not isinstance(model, nn.Module):
        return False
    try:
        with torch.enable_grad(), called_so(model, way) as can:
            return can and _is_program(
                locate_program(model, example, settings).program, program, held
            )
    except (Looked, CaptureError, NoAttentionFoundError):
        return False


def _is_program(other: Program, program: Program, held: nn.Module) -> bool:
    constants = other.constants
    return _serves(other) == _serves(program) and is_same(
        program.graph,
        other.graph,
        lambda name: held_at(held, name),
        lambda name: constants.get(name, held_at(held, name)),
    )


def _serves(program: Program) -> tuple[object, ...]:
    """What a program is for."""
    fixed = {name: str(value) for name, value in program.fixed.items()}
    some = (program.static_batch, program.one_image, program.least, program.most, program.times)
    return (*some, program.how, program.batched, fixed, program.decided)
