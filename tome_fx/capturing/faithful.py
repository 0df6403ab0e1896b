"""Does a captured program compute what its model does?

A model's own code may ask whether it is traced (``torch.compiler.is_compiling()``, the class of a
tensor), and go another way then. No graph tells so: both are run once, on a few example images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from tome_fx import ops
from tome_fx.capturing.blame import blame
from tome_fx.capturing.examples import Example
from tome_fx.capturing.original import Original, is_real
from tome_fx.capturing.questions import GRADIENTS, INFERENCE
from tome_fx.capturing.results import refuse_unknown
from tome_fx.capturing.rounding import excess, is_inexact, precision_of, relative
from tome_fx.capturing.running import first_unlike, run_program
from tome_fx.errors import CaptureError, warn
from tome_fx.graph.calls import bind
from tome_fx.ops.modes import Mode, mode_now
from tome_fx.program import Program

REMEMBERED = (
    "The model returns values of a trace: its code keeps what it made in a call (a dict, "
    "functools.lru_cache), and was traced before it was run with a batch of this size. Empty what "
    "it keeps, run the model once, and transform it then."
)


def check_faithful(program: Program, original: Original, example: Example) -> None:
    """Run the model and its program on the example, and compare what they return.

    Nothing is said of programs that draw random numbers, and of models on the meta device.

    Args:
        original: the model, which was never traced.

    Raises:
        CaptureError: they differ by more than rounding may, see :mod:`tome_fx.capturing.rounding`;
            the error's module is the first one to end with another result, where one is found.
    """
    if not _can_tell(program, original, example):
        return
    failure: Exception = RuntimeError()
    ran = False
    for some in _samples(program, example):
        try:
            expected = original.run(some)
            ran = True
            result = run_program(program, some)
        except Exception as error:  # the first images alone may be none of its inputs
            failure = error
            continue
        _compare(program, original, some, expected, result)
        return
    if ran:
        raise CaptureError(f"The captured program does not run: {failure}") from failure
    warn(
        f"The model does not run on its example inputs ({blame(failure)}), so what was captured of "
        "it could not be compared with it.",
    )


def treats_one_apart(program: Program, original: Original, example: Example) -> bool:
    """Does the model's code go another way for one image than for several?

    No graph tells so: tracing takes for granted that there are several. A model that takes no
    single image has no other way for it.
    """
    if program.static_batch or not _can_tell(program, original, example):
        return False
    one = example.first(program.times)
    try:
        expected = original.run(one)
    except Exception:
        return False
    try:
        return bool(_difference(expected, run_program(program, one), precision_of(program.graph)))
    except Exception:
        return True


def remembered(program: Program, original: Original, example: Example) -> tuple[str, ...]:
    """The attributes by which a call of the model changes the next one.

    Asked where the model and its program differ for one image, which may follow upon several.
    """
    one, again = (example.first(program.times) for _ in range(2))
    try:
        original.run(replace(example))
        before = original.attributes()
        same = not _difference(original.run(one), original.run(again), precision_of(program.graph))
    except Exception:  # it may refuse one image, or one that follows upon several
        return ()
    after = original.attributes()
    changed = [name for name in after if not _is_same(before.get(name), after[name])]
    return () if same else (*changed,) or ("what it keeps",)


def in_modes(program: Program, original: Original, example: Example) -> Program:
    """The program that says in which modes the model computes something else.

    The model is run in another mode only where its code asks for it.
    """
    asked = original.questions.lines
    program = replace(program, mode=mode_now(), asked=dict(asked))
    if not asked.keys() & {GRADIENTS, INFERENCE} or not _can_tell(program, original, example):
        return program
    others = [mode for mode in (ops.GRADED, ops.UNGRADED) if mode != program.mode]
    others += [ops.INFERENCE] if INFERENCE in asked else []
    unlike = [mode for mode in others if _is_unlike(program, original, example, mode)]
    if INFERENCE not in asked and ops.UNGRADED in unlike:
        unlike.append(ops.INFERENCE)  # the same to code that asks for gradients alone
    return replace(program, unlike=tuple(unlike))


def _is_unlike(program: Program, original: Original, example: Example, mode: Mode) -> bool:
    """Does the model compute something else in a mode that it runs in?

    Not so if another call in the program's own mode does too: it remembers calls.
    """
    precision = precision_of(program.graph)
    for some in _samples(program, example):
        try:
            result = run_program(program, some)
            if not _difference(original.run_in(mode, some), result, precision):
                return False
            return not _difference(original.run_in(program.mode, some), result, precision)
        except Exception:  # the first images alone may be none of its inputs
            continue
    return False


def _is_same(value: Any, other: Any) -> bool:
    return value is other or (isinstance(other, (bool, int, float, str)) and bool(value == other))


def _compare(
    program: Program, original: Original, example: Example, expected: Any, result: Any
) -> None:
    precision = precision_of(program.graph)
    what = _difference(expected, result, precision)
    if not what:
        return
    module = ""
    with contextlib.suppress(Exception):  # a model may refuse a second call
        module = first_unlike(program, original.module, example, precision)
    where = f", first in {module}" if module else ""
    raise CaptureError(
        f"The model computes something else while it is captured than when it is run: {what}"
        f"{where}. Its code asks whether it is traced, remembers earlier calls or draws numbers by "
        "itself.",
        module,
        "Make it go one way in both, and transform it then; check=False takes the program as it "
        "was captured.",
    )


def _difference(expected: Any, result: Any, precision: float) -> str:
    """What is not the same; an empty text if nothing is, or if it cannot be told.

    Raises:
        CaptureError: the model returns what no program can.
    """
    leaves = _named(expected)
    wanted = [(name, leaf) for name, leaf in leaves if isinstance(leaf, Tensor)]
    got = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    refuse_unknown([leaf for _, leaf in leaves])
    if not all(is_real(leaf) for _, leaf in leaves):
        warn(REMEMBERED)
        return ""
    if len(wanted) != len(got):
        return f"it returns {len(got)} tensors in place of {len(wanted)}"
    rounded = any(map(is_inexact, got))
    for (name, one), other in zip(wanted, got, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"{name} is {_kind(other)} in place of {_kind(one)}"
        if rounded and not is_inexact(one):
            continue  # an argmax, say, where rounding may decide
        if excess(one, other, precision) > 1.0:
            return f"{name} differs by {relative(one, other):.2g} times its norm"
    return ""


def _named(result: Any) -> list[tuple[str, Any]]:
    """What a model returns, with the way to each; by number where a class tells no way into it."""
    try:
        leaves, _ = pytree.tree_flatten_with_path(result)
    except ValueError:
        return [(f"result, tensor {k}", leaf) for k, leaf in enumerate(pytree.tree_leaves(result))]
    return [(f"result{pytree.keystr(path)}", leaf) for path, leaf in leaves]


def _kind(value: Tensor) -> str:
    return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _can_tell(program: Program, original: Original, example: Example) -> bool:
    values = (*program.constants.values(), *example.leaves)
    real = original.is_real and all(map(is_real, values))
    return real and not any(map(_draws, program.graph.nodes))


def _draws(node: Node) -> bool:
    """Does an op draw random numbers? Those that may, and do not here, are tagged as well."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    call = bind(node)
    off = call.get("train") is False or call.get("training") is False
    return not off and call.get("dropout_p", call.get("p", 1.0)) != 0.0


def _samples(program: Program, example: Example) -> Iterator[Example]:
    """The first images where the program takes any number, then all."""
    if program.static_batch:
        yield example.sized(program.batch)
        return
    # One group alone may go another way, as one image may.
    least = max(program.least, 2 * program.times) if program.times > 1 else program.least
    fits = example.few.batch >= least and example.few.batch % program.times == 0
    if fits:
        yield example.few
    if example.few is not example or not fits:
        yield example
