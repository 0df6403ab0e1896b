"""Other ways to call a model that come to the same program.

A tower is called by whatever it is a part of: once with ``use_cache=False``, once without, and by
a trainer with the number of items in a batch, none of which it looks at. Another way than the
captured one is captured too, with stand-ins that nobody may look at, and taken if nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tome_fx import ops
from tome_fx.capturing.unread import Kind, LeftOut, exactly, kind_of
from tome_fx.errors import ShapeError

Way = dict[str, Kind]
UNSEEN = (
    " (Whether it computes the same is found out by a call like this outside of torch.compile, "
    "before.)"
)


class Ways:
    """How a captured program is called, by the arguments that are no tensors of it.

    Copies of its graph share it.

    Attributes:
        captured: what they were, by name, in the order that :meth:`usual` has them.
        defaults: what the model takes for those that a call lacks.
        ask: whether another way comes to the same; None where it cannot be found out.
    """

    def __init__(self, captured: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.captured = dict(captured)
        self.defaults = dict(defaults)
        self.known: list[tuple[Way, bool]] = []
        self.ask: Callable[[Way], bool] | None = None

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
        way = {name: kind_of(value) for name, value in meant.items()}
        same = self._is_same(way)
        if same is False:  # of a number that is looked at, this one may do no harm
            exact = {name: exactly(value) for name, value in meant.items()}
            same = exact != way and self._is_same(exact)
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

    def _is_same(self, way: Mapping[str, Any]) -> bool | None:
        """Does it come to the same program? None where that is not known yet."""
        for known, same in self.known:
            if known == way:
                return same
        if self.ask is None or any(isinstance(kind, type) for kind in way.values()):
            return False
        if torch.compiler.is_compiling():
            return None
        same = self.ask(dict(way))
        self.known.append((dict(way), same))
        return same


def was_given(value: object, name: str, least: tuple[object, ...] = (LeftOut,)) -> None:
    """Raise ShapeError if an argument is one of ``least``."""
    if any(value is one for one in least):
        how = "None" if value is None else "left out"
        raise ShapeError(
            f"{name} is {how}, but the model was captured with it. For calls without it, transform "
            "the model again without it in its example inputs."
        )


def _is(value: Any, captured: Any) -> bool:
    return type(value) is type(captured) and bool(value == captured)
