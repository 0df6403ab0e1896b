"""Stand-ins for arguments that a model is given and may not look at.

Whatever is done with one but to pass it on, to ask its class or whether it is None, ends the call:
a model that runs to its end with it, and with a value of that class, computes the same for all.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

Kind = bool | str | tuple[str, int | float | str] | None
ABSENT = "left out"
_NUMBERS = {kind.__name__: kind for kind in (int, float, str)}


class LeftOut:
    """Stands for an argument that a call lacks."""


class Looked(BaseException):
    """Something looked at a stand-in; no handler of the model's is meant to see it."""

    seen = False  # some may all the same


def _looked(*args: Any, **kwargs: Any) -> NoReturn:
    Looked.seen = True
    raise Looked


class _UnreadTensor(Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        _looked()


def _class_of(base: type) -> type:
    """Objects that say they are of a class and are not: what reads the number in C asks them."""
    kept = {"__new__", "__init__", "__init_subclass__", "__subclasshook__", "__class__", "__doc__"}
    names = {*dir(base), "__index__", "__int__", "__float__", "__iter__", "__fspath__"} - kept
    body: dict[str, Any] = dict.fromkeys(names, _looked)
    return type(base.__name__, (), {**body, "__class__": property(lambda self: base)})


_UNREAD = {name: _class_of(kind) for name, kind in _NUMBERS.items()}


def kind_of(value: Any) -> Kind | type:
    """What a stand-in needs to know of an argument: None and truths themselves, else a class.

    The class itself where there is no stand-in for it.
    """
    if value is None or isinstance(value, bool):
        return value
    if value is LeftOut:
        return ABSENT
    # Dynamo has no attributes of a tensor.
    if type(value) is Tensor and (torch.compiler.is_compiling() or not vars(value)):
        return f"{value.dtype} on {value.device.type}"
    return type(value).__name__ if type(value) in _NUMBERS.values() else type(value)


def exactly(value: Any) -> Kind | type:
    """The same, with a number or a text itself."""
    kind = kind_of(value)
    return (kind, value) if isinstance(kind, str) and kind in _NUMBERS else kind


def stand_in(kind: Kind, value: Any) -> Any:
    """What stands for a value of that kind; itself where that says which it is."""
    if not isinstance(kind, str) or kind == ABSENT:
        return value
    if kind in _UNREAD:
        return _UNREAD[kind]()
    return torch.empty(0, dtype=value.dtype, device=value.device).as_subclass(_UnreadTensor)
