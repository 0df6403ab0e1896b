"""Other ways to call a model that come to the same program.

A tower is called by whatever it is a part of: once with ``use_cache=False``, once without, and by
a trainer with the number of items in a batch, none of which it looks at. Another way than the
captured one is captured too, with stand-ins that nobody may look at, and taken if nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from tome_fx import ops
from tome_fx.capturing.unread import Kind, LeftOut, exactly, kind_of, stand_in
from tome_fx.errors import ShapeError

UNSEEN = (
    " (Whether it computes the same is found out by a plain call like this, before: outside of "
    "torch.compile, torch.func and modes that watch.)"
)
MOST = 64  # ways that are looked at


class Ways:
    """How a captured program is called, by the arguments that are no tensors of it.

    Copies of its graph share it.

    Attributes:
        captured: what they were, by name, in the order that :meth:`usual` has them.
        defaults: what the model takes for those that a call lacks.
        ask: whether other arguments come to the same, None if that cannot be told now; None where
            it never can.
        graded: were gradients on where the program was captured? They are for others too.
    """

    def __init__(self, captured: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.captured = dict(captured)
        self.defaults = dict(defaults)
        self.known: list[tuple[list[Any], bool]] = []
        self.ask: Callable[[dict[str, Any]], bool | None] | None = None
        self.graded = torch.is_grad_enabled()

    def anew(self) -> Ways:
        """The same, for another module to be asked."""
        other = copy.copy(self)
        other.known, other.ask = [*self.known], None
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Ways:
        return self

    def usual(self, given: tuple[Any, ...], more: Mapping[str, Any]) -> tuple[Any, ...]:
        """The captured values for ``given`` ones, and for ``more`` that the model gathers.

        Raises:
            ShapeError: with these the model may compute something else.
        """
        other = {}
        for name, value in zip(self.captured, given, strict=True):
            if not _is(self._meant(name, value), self.captured[name]):
                other[name] = value
        if other or more:
            self._take({**other, **more})
        return tuple(self.captured.values())

    def _meant(self, name: str, value: Any) -> Any:
        return self.defaults.get(name, value) if value is LeftOut else value

    def _take(self, other: dict[str, Any]) -> None:
        meant = {name: self._meant(name, value) for name, value in other.items()}
        same = self._is_same(meant)
        if same:
            return
        for name, value in other.items():
            was_given(value, name)
            if name in self.captured:
                ops.check_constant(value, self.captured[name], name)
        hint = "" if same is not None else UNSEEN
        raise ShapeError(
            f"{', '.join(other)}: the model was captured without, and may look at it. Transform "
            f"the model again with it in example_kwargs.{hint}"
        )

    def _is_same(self, values: dict[str, Any]) -> bool | None:
        """Do they come to the same program? None where that is not known yet."""
        kinds = [(name, kind_of(value)) for name, value in values.items()]
        exact = [(name, exactly(value)) for name, value in values.items()]
        if self._known(kinds) or self._known(exact):
            return True
        if self.ask is None or self._known(exact) is False or len(self.known) >= MOST:
            return False
        if any(isinstance(kind, type) for _, kind in kinds):
            return False
        tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
        if len({id(value) for value in tensors}) < len(tensors):
            return False  # code may ask whether two are one
        if torch.compiler.is_compiling() or _is_watched():
            return None
        same = _untraced(self.ask, values)
        if same is None:
            return None
        if same and self._known(kinds) is None:
            stand_ins = {n: stand_in(cast(Kind, kind), values[n]) for n, kind in kinds}
            any_value = (kinds == exact and not tensors) or bool(_untraced(self.ask, stand_ins))
            self.known.append((kinds, any_value))
            same = any_value or not tensors  # tensors decide by their values
        self.known.append((exact, same and not tensors))
        return same

    def _known(self, way: list[tuple[str, Any]]) -> bool | None:
        return next((same for known, same in self.known if known == way), None)


def _untraced(ask: Callable[[dict[str, Any]], bool | None], values: dict[str, Any]) -> bool | None:
    """The answer; a capture is no part of what ``torch.jit.trace`` records.

    The exporter to ONNX that is built on it gives ``None`` for whatever a call leaves out.
    """
    state, put = torch._C._get_tracing_state(), torch._C._set_tracing_state  # type: ignore[attr-defined]
    put(None)
    try:
        return ask(values)
    finally:
        put(state)


def _is_watched() -> bool:
    """Would a capture be seen, or another one, by what is around the call?"""
    return bool(
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )


def was_given(value: object, name: str, least: tuple[object, ...] = (LeftOut,)) -> None:
    """Raise ShapeError if an argument is one of ``least``."""
    if any(value is one for one in least):
        how = "None" if value is None else "left out"
        raise ShapeError(
            f"{name} is {how}, but the model was captured with it. For calls without it, transform "
            "the model again without it in its example inputs."
        )


def _is(value: Any, captured: Any) -> bool:
    """Also -0.0 is not 0.0."""
    return type(value) is type(captured) and value == captured and repr(value) == repr(captured)
