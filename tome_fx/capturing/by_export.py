"""By ``torch.export``, knowing what code may read: grids, what it makes itself, buffers.

Export traces values without numbers. Where code reads some, it is tried again with those known that
no image has a part in, on a fresh copy of the model each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from tome_fx.capturing.alike import picks_across
from tome_fx.capturing.decided import DecidedByBuffers
from tome_fx.capturing.describing import written
from tome_fx.capturing.examples import Example
from tome_fx.capturing.exporting import UNKNOWN_RESULT, from_export
from tome_fx.capturing.fixed import as_constants, fixed_inputs, has_numbers
from tome_fx.capturing.followed import followed_in
from tome_fx.capturing.known import ranges_known
from tome_fx.capturing.leaves import culprit
from tome_fx.capturing.made import MadeKnown
from tome_fx.capturing.skeleton import fresh, structure_copy
from tome_fx.errors import CaptureError
from tome_fx.program import Program


@dataclass(frozen=True)
class _Known:
    """What is known while export traces, beside shapes: grids, and what the code itself makes."""

    numbers: bool = False
    ranges: bool = False

    def export(
        self,
        model: nn.Module,
        example: Example,
        buffers: DecidedByBuffers | None,
        unread: nn.Module,
    ) -> Program:
        """By ``torch.export``, knowing that, and ``buffers``.

        Args:
            unread: what the model is a copy of.
        """
        with contextlib.ExitStack() as known:
            if self.numbers:
                known.enter_context(as_constants(model, example))
            if self.ranges:
                known.enter_context(ranges_known())
                known.enter_context(followed_in(model, MadeKnown()))
            if buffers is not None:
                known.enter_context(followed_in(model, buffers))
            # It is of no use to rows beside a grid, which have no batch.
            batched = self == _Known() or _has_images(example)
            program = _plainly(model, example, unread if batched else None)
        return replace(program, fixed=fixed_inputs(program, example)) if self.numbers else program


def _has_images(example: Example) -> bool:
    """Is there an input with more than a row of numbers for each place on its first axis?"""
    return any(example.has_rows(leaf) and leaf.dim() > 2 for leaf in example.leaves)


def by_export(model: nn.Module, example: Example) -> Program:
    """By ``torch.export``; where values stop it, with those that may be known as constants."""
    numbers, failures = has_numbers(example), dict[_Known, CaptureError]()
    ways = [*dict.fromkeys((_Known(), _Known(numbers), _Known(numbers, ranges=True)))]
    for known, buffers in _tries(ways, failures):
        tried = fresh(model)
        reading = DecidedByBuffers(tried) if buffers else None
        if reading is not None and not reading.serves:
            continue
        try:
            program = known.export(tried, example, reading, model)
        except CaptureError as failure:
            failure.module = failure.module or culprit(failure, tried)
            if UNKNOWN_RESULT in failure.found:
                raise  # it was captured to its end
            if reading is None or reading.names:
                failures[known] = failure
        else:
            return program if reading is None else decided_by(program, reading.names)
    raise list(failures.values())[-1]


def with_one_batch(model: nn.Module, example: Example) -> Program:
    """By export with the same batch for all inputs, also where code takes that as a number.

    Raises:
        CaptureError: there is no such program.
    """
    with contextlib.suppress(CaptureError):
        return from_export(model, example, shared=True)
    return from_export(structure_copy(model), example, shared=True, strict=True)


def _tries(
    ways: Sequence[_Known], failures: Mapping[_Known, CaptureError]
) -> Iterator[tuple[_Known, bool]]:
    """What to know, and whether the values of buffers are, each if what was before it failed.

    Buffers come last: what is captured without them does not read them. They come first where the
    failure does not say that it is one of values, as where a number is looked up.
    """
    plain = ways[0]
    yield plain, False
    looked_up = not failures[plain].reads_values
    if looked_up:
        yield plain, True
    if failures[plain].reads_values:
        yield from ((known, False) for known in ways[1:])
        yield from ((known, True) for known in ways if known != plain or not looked_up)


def _plainly(model: nn.Module, example: Example, unread: nn.Module | None) -> Program:
    """By export as it is, with a batch if there is a way.

    Args:
        unread: the same, for another try that reads its code; None if there is to be none. Export
            puts other containers in the places of those that code wrote to.
    """
    program = from_export(model, example)
    if not program.static_batch or example.batch < 2:
        return program
    if unread is not None:
        with contextlib.suppress(CaptureError):
            # ``len(x)`` and ``int(windows / per_image)`` are plain numbers to code that runs.
            read = from_export(structure_copy(unread), example, strict=True)
            if picks_across(read):
                with contextlib.suppress(CaptureError):
                    return from_export(structure_copy(unread), example, shared=True, strict=True)
            if not read.static_batch:
                return read
    if sum(map(example.has_rows, example.leaves)) > 1:
        with contextlib.suppress(CaptureError):
            # A size of one input that is compared with that of another is no number.
            return with_one_batch(model, example)
    return program if example.single is None else from_export(model, example.single)


def decided_by(program: Program, names: Set[str]) -> Program:
    """The program that the values of buffers decided, if it leaves them as they are."""
    changed = ", ".join(sorted(names & written(program.graph)))
    if changed:
        raise CaptureError(
            f"The model's code branches on the values of {changed} and writes to it, so that one "
            "call may do something else than the one before."
        )
    return replace(program, decided=tuple(sorted(names)))
