"""What a report says of a captured program: what stays a call, and which inputs it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tome_fx.capturing.questions import AUTOCAST
from tome_fx.graph.leaves import leaves_of
from tome_fx.ops.check import batches
from tome_fx.program import Program


def notes_of(program: Program) -> Iterable[str]:
    """What a report says of how a program was captured, and what it is for."""
    for path, reason in {leaf.path: leaf.reason for leaf in leaves_of(program.graph)}.items():
        yield (
            f"{path} stays a call, and all tokens that it makes are patches unless protect= says "
            f"otherwise: {reason}"
        )
    if program.backwards:
        yield _gradients(program.backwards)
    if program.decided:
        yield (
            f"the model's code branches on the values of {', '.join(program.decided)}: the "
            "program is the one for what they hold now; transform again when they change"
        )
    if program.tied:
        yield (
            "all inputs of images have one batch: with batches of their own, which the model would "
            "take, only the first would merge. A program that torch.export made with a Dim for "
            "each has them"
        )
    if program.times > 1:
        yield f"the model's own code takes its images in groups of {program.times}"
    yield from _ways(program)
    yield from _modes(program)
    for name, values in program.fixed.items():
        yield f"the program is for {name} = {values}, which the model's code reads shapes from"
    if not program.batched:
        yield "the program is for one image: the first axis of its inputs is none of images"
    elif program.static_batch:
        yield f"the model's own code fixes the batch at {program.batch}"


def _ways(program: Program) -> Iterable[str]:
    """Where a model goes another way than its program: in later calls, and for other batches."""
    if program.remembers:
        yield (
            f"a call of the model changes the next one ({', '.join(program.remembers)}): the "
            "program keeps nothing from call to call, and computes what the first one does"
        )
    if program.most is not None or program.least > 2:
        yield (
            "the model's own code goes another way for other batches: this program is for "
            f"{batches(program.least, program.most)}"
        )
    elif program.least > 1 and program.remembers:
        yield (
            "whether the model's own code treats one image apart cannot be told beside that: this "
            "program is for several; transform again with one image as example for one"
        )
    elif program.least > 1:
        yield (
            "the model's own code goes another way for one image than for several: this program is "
            "for several; transform again with one image as example for the other"
        )


def _modes(program: Program) -> Iterable[str]:
    """What the model's code asks of a call, where the program is for one answer alone."""
    if program.unlike:
        lines = ", ".join(line for what, line in program.asked.items() if what != AUTOCAST)
        yield (
            f"the model's code asks for the mode of its call ({lines}) and computes something else "
            f"{' and '.join(program.unlike)}: the program is for calls {program.mode}, and refuses "
            "those"
        )
    if AUTOCAST in program.asked:
        yield (
            f"the model's code asks for autocast ({program.asked[AUTOCAST]}): the program goes the "
            "way that the model went at the transform, whatever a later call is under"
        )


def _gradients(backwards: Mapping[str, str]) -> str:
    """Of functions with a gradient of their own, by module, that the program has not."""
    (path, name), *more = backwards.items()
    where = f"{path or 'the model itself'}{f' and {len(more)} more modules' if more else ''}"
    return (
        f"gradients through {name}, in {where}, are those of what its forward computes, not its "
        "own; train() keeps its own where it can, and refuses otherwise"
    )
