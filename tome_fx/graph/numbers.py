"""What a module says about itself: the numbers it was made with, and other data that people read.

A result computes with those numbers as they were.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from tome_fx.errors import warn


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


def is_same(told: Any, value: Any) -> bool:
    """Is ``value`` what was told, or equal to it?"""
    if told is value:
        return True
    return _is_number(value) and (value == told or (value != value and told != told))  # (nan)


def warn_of_change(model: nn.Module, name: str, value: Any) -> None:
    """Warn where a number that ``model`` has becomes another on its result, which does not look."""
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
