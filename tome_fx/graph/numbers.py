"""What a module says about itself: the numbers it was made with, and other data that people read.

A result computes with those numbers as they were.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from tome_fx.errors import warn

UNREAD = (
    "{} is a plain attribute of the model, no parameter and no buffer: a transformed module "
    "computes with what it was, and another tensor changes nothing. Change the model, then "
    "transform that."
)


def is_data(name: str, value: Any) -> bool:
    """An attribute that people read (``config``, ``num_classes``): data, not structure."""
    if name.startswith("_") or name == "training":
        return False
    return not isinstance(value, (Tensor, nn.Module)) and not callable(value)


def numbers_of(module: nn.Module, but: Collection[str] = ()) -> dict[str, Any]:
    """What is a number, a text or a row of such among the data of ``module``, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if is_data(name, value) and _is_number(value) and name not in but
    }


def plain_tensors(module: nn.Module) -> frozenset[str]:
    """The names of tensors that are plain attributes, neither parameters nor buffers."""
    return frozenset(name for name, value in vars(module).items() if isinstance(value, Tensor))


def is_same(told: Any, value: Any) -> bool:
    """Is ``value`` what was told, or equal to it?"""
    if told is value:
        return True
    return _is_number(value) and (value == told or (value != value and told != told))  # (nan)


def warn_of_change(model: nn.Module, name: str, value: Any) -> None:
    """Warn where what ``model`` has becomes another on its result, which does not look.

    That is a number, or a tensor that is a plain attribute.
    """
    if isinstance(value, Tensor) and name in plain_tensors(model):
        warn(UNREAD.format(name))
        return
    told = numbers_of(model).get(name, value)
    if not is_same(told, value):
        warn(
            f"{name}={value!r} changes nothing that is computed: a transformed module computes "
            f"with {name}={told!r}, as the model did. Change the model, then transform that."
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_number, value))
    return isinstance(value, (bool, int, float, str, type(None)))
