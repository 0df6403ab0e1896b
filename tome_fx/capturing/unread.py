"""Stand-ins for arguments that a model is given and may not look at.

Whatever is done with one but to pass it on, to ask its class or whether it is None, ends the call:
a model that runs to its end with it computes the same for any value of that class.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

Kind = bool | str | tuple[str, int | float | str] | None
ABSENT = "left out"


class LeftOut:
    """Stands for an argument that a call lacks."""


class Looked(BaseException):
    """Something looked at an :class:`Unread`; no handler of the model's is meant to see it."""


def _looked(*args: Any, **kwargs: Any) -> NoReturn:
    raise Looked


class _UnreadTensor(Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        _looked()


_KEPT = {"__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class__", "__doc__"}


def _class_of(base: type) -> type:
    names = (name for name in dir(base) if callable(getattr(base, name)) and name not in _KEPT)
    return type(base.__name__, (base,), dict.fromkeys(names, _looked))


_NUMBERS = {base.__name__: _class_of(base) for base in (int, float, str)}


def kind_of(value: Any) -> Kind | type:
    """What a stand-in needs to know of an argument: None and truths themselves, else a class.

    The class itself where there is no stand-in for it.
    """
    if value is None or isinstance(value, bool):
        return value
    if value is LeftOut:
        return ABSENT
    if isinstance(value, Tensor):
        return "Tensor"
    return type(value).__name__ if type(value) in (int, float, str) else type(value)


def exactly(value: Any) -> Kind | type:
    """The same, with a number or a text itself."""
    kind = kind_of(value)
    return (kind, value) if isinstance(kind, str) and kind in _NUMBERS else kind


def stand_in(kind: Kind) -> Any:
    """A value of that kind, which must not be looked at unless the kind says which it is."""
    if kind is None or isinstance(kind, bool):
        return kind
    if isinstance(kind, tuple):
        return kind[1]
    if kind == "Tensor":
        return torch.empty(0).as_subclass(_UnreadTensor)
    return _NUMBERS[kind]()
