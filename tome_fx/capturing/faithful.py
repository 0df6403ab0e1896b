"""Does a captured program compute what its model does?

A model's own code may ask whether it is traced (``torch.compiler.is_compiling()``, the class of a
tensor), and go another way then. No graph tells so: both are run once, on a few example images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example
from tome_fx.capturing.rounding import excess, precision_of, relative
from tome_fx.capturing.running import first_unlike, run_model, run_program
from tome_fx.errors import CaptureError
from tome_fx.graph.calls import bind
from tome_fx.program import Program

# Images that are run: a batch of one may be a special case.
FEW = 2


def check_faithful(program: Program, original: nn.Module, example: Example) -> None:
    """Run the model and its program on the example, and compare what they return.

    Nothing is said of what draws random numbers, and of models without values.

    Args:
        original: a copy of the model that was never traced.

    Raises:
        CaptureError: they differ by more than rounding, which is the root of the relative precision
            of the narrowest floating dtype in the program; the error's module is the first one to
            end with another result, where one is found.
    """
    if not _can_tell(program, original, example):
        return
    failure: Exception | None = None
    for some in _samples(program, example):
        try:
            expected = run_model(original, some)
        except Exception:  # the first images alone may be none of its inputs
            continue
        try:
            result = run_program(program, some)
        except Exception as error:
            failure = error
            continue
        _compare(program, original, some, expected, result)
        return
    if failure is not None:
        raise CaptureError(f"The captured program does not run: {failure}") from failure


def _compare(
    program: Program, original: nn.Module, example: Example, expected: Any, result: Any
) -> None:
    precision = precision_of(program.graph)
    what = _difference(expected, result, precision)
    if not what:
        return

    def alike(one: Tensor, other: Tensor) -> bool:
        return excess(one, other, precision) <= 1.0

    module = first_unlike(program, original, example, alike)
    where = f", first in {module}" if module else ""
    raise CaptureError(
        f"The model computes something else while it is captured than when it is run: {what}"
        f"{where}. Its code asks whether it is traced, or remembers earlier calls.",
        module,
        "Make it go one way in both, and transform it then; check=False takes the program as it "
        "was captured.",
    )


def _difference(expected: Any, result: Any, precision: float) -> str:
    """What is not the same, an empty text if nothing is."""
    leaves, _ = pytree.tree_flatten_with_path(expected)
    wanted = [(pytree.keystr(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
    got = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    if len(wanted) != len(got):
        return f"it returns {len(got)} tensors in place of {len(wanted)}"
    floating = any(value.is_floating_point() for value in got)
    for (path, one), other in zip(wanted, got, strict=True):
        name = f"result{path}"
        if one.shape != other.shape:
            return f"{name} is {list(other.shape)} in place of {list(one.shape)}"
        if floating and not one.is_floating_point():
            continue  # an argmax, say, where rounding may decide
        if excess(one, other, precision) > 1.0:
            return f"{name} differs by {relative(one, other):.2g} times its norm"
    return ""


def _can_tell(program: Program, original: nn.Module, example: Example) -> bool:
    held = [*original.parameters(), *original.buffers(), *program.constants.values()]
    given = pytree.tree_leaves((example.args, dict(example.kwargs)))
    values = [value for value in (*held, *given) if isinstance(value, Tensor)]
    real = not any(value.is_meta or isinstance(value, FakeTensor) for value in values)
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
        single = example.single
        yield single if single is not None and program.batch == single.batch else example
        return

    def first(value: Tensor) -> Tensor:
        return value[:FEW] if value.dim() and value.shape[0] == example.batch else value

    if example.batch > FEW:
        args, kwargs = pytree.tree_map_only(Tensor, first, (example.args, dict(example.kwargs)))
        yield Example(args, kwargs, FEW)
    yield example
