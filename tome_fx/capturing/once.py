"""What runs once while a model is traced symbolically, though the model does it at each call.

Ops that no input has a part in run then and there, and what they yield is a constant of the
program. For most that is the same. What they draw is drawn anew at each call of the model, and
what they write to a tensor that the model keeps is there at the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tome_fx.capturing.tensors import tensors_in

_DRAWN = (
    "it draws random numbers that no input has a part in: symbolic tracing keeps those of one "
    "call. Use capture='export'."
)
_WRITTEN = (
    "it writes to a tensor that it keeps, which symbolic tracing does not record. Use "
    "capture='export', and register_buffer for what it writes to."
)
_READ = frozenset({torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default})
_READ_WHOLE = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})  # no ops


class RunOnce(TorchDispatchMode):
    """Within, ops on real tensors are refused where a program would not do what they do.

    Raises:
        RuntimeError: in the line that writes to a tensor which was there before, or that reads
            what was drawn as a number; `refuse_drawn`: a drawn tensor would be a constant.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Held, so that no other tensor gets the place of one in memory.
        self._made: dict[int, Tensor] = {}
        self._drawn: dict[int, Tensor] = {}
        self._read = _ReadsWhole(self)

    def __enter__(self) -> RunOnce:
        self._read.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._read.__exit__(*error)  # type: ignore[no-untyped-call]

    def refuse_drawn(self, value: Any) -> None:
        """Raise where one of the tensors in ``value`` was drawn, or made of one that was."""
        if any(_place(leaf) in self._drawn for leaf in tensors_in(value)):
            raise RuntimeError(_DRAWN)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an op as it is, and remember of what it made what has to be known."""
        named = dict(kwargs or {})
        if func in _READ:
            self.refuse_drawn(args)
        if any(_place(goal) not in self._made for goal in _goals(func, args, named)):
            raise RuntimeError(_WRITTEN)
        given = {_place(leaf) for leaf in tensors_in((args, named))}
        before = _random_state() if torch.Tag.nondeterministic_seeded in func.tags else None
        result = func(*args, **named)
        draws = bool(given & self._drawn.keys())
        if before is not None:  # fused attention may draw, and does not without dropout
            draws |= "generator" in named or not _same(before, _random_state())
        for leaf in tensors_in(result):
            if _place(leaf) not in given or func is torch.ops.aten.lift_fresh.default:
                self._made[_place(leaf)] = leaf
            if draws:
                self._drawn[_place(leaf)] = leaf
        return result


class _ReadsWhole(TorchFunctionMode):
    """Refuses to read all numbers at once of what was drawn."""

    def __init__(self, ops: RunOnce) -> None:
        super().__init__()
        self._ops = ops

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READ_WHOLE:
            self._ops.refuse_drawn(args)
        return func(*args, **(kwargs or {}))


def _random_state() -> list[Tensor]:
    """That of the generators which draw if none is named."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _goals(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an op writes to."""
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs]
    written = [value for one, value in given if one.alias_info and one.alias_info.is_write]
    return tensors_in(written)


def _place(tensor: Tensor) -> int:
    """What a tensor has in common with its views."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # of a sparse one
        return id(tensor)
