"""The options of a transform, checked once."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import torch

from tome_fx.costs.hardware import DeviceModel, device_model
from tome_fx.entries import Entries
from tome_fx.errors import ConfigError
from tome_fx.grouping import Align
from tome_fx.ops import FORMS
from tome_fx.own_matching import Function, asked_by
from tome_fx.rules.base import Rule
from tome_fx.schedule import Rounding, asked, is_list, is_real

Remerge: TypeAlias = Literal["mean", "never"]
# How attention with sizes is computed: chosen, measured, by form, or as the model writes it.
ATTENTION = ("auto", "measure", "written", *FORMS)


@dataclass(frozen=True)
class Settings:
    """How to transform; see :func:`tome_fx.transform` for the meaning of each field."""

    r: Any = 16
    prop_attn: bool = True
    capture: str = "auto"
    check: bool = True
    rounding: Rounding = "truncate"
    strict: bool = False
    protect: tuple[int, int] | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)
    remerge: Remerge = "mean"
    min_ratio: float = 1.02
    scatter: bool = True
    attention: str = "auto"
    every: int = 1
    align: Align = 1
    batch: int | None = None
    hardware: DeviceModel | str | None = None
    min_speedup: float = 1.0
    matching: Function | None = None

    def with_r(self, r: Any) -> Settings:
        """The same settings with another, checked ``r``."""
        check_r(r, self.rounding)
        return replace(self, r=_plain(r))


_OWN = tuple(option.name for option in fields(Settings))
EXAMPLES = ("example_inputs", "example_kwargs", "example_call")
OPTIONS = (*_OWN, *EXAMPLES)
# A compiler captures by itself.
COMPILED = tuple(name for name in _OWN if name not in ("capture", "check"))
BACKEND_OPTIONS = (*COMPILED, "inner_backend", "mode", "inner_options")
# Some options are code, and r says more than JSON can tell apart.
CODE = ("rules", "matching")
SAVED_OPTIONS = tuple(name for name in _OWN if name not in ("r", *CODE))


def checked(settings: Settings) -> Settings:
    """``settings`` if every field is in its range.

    Raises:
        ConfigError: field, value and the allowed range.
    """
    check_r(settings.r, settings.rounding)
    counts = {name: _whole(getattr(settings, name)) for name in ("every", "align", "batch")}
    settings = replace(settings, **counts)
    for name in ("prop_attn", "check", "strict", "scatter"):
        if not isinstance(getattr(settings, name), bool):
            raise ConfigError(f"{name}={getattr(settings, name)!r} is not True or False.")
    if settings.capture not in ("auto", "export", "symbolic_trace"):
        raise ConfigError(
            f"capture={settings.capture!r} is not one of 'auto', 'export', 'symbolic_trace'."
        )
    if settings.remerge not in ("mean", "never"):
        raise ConfigError(f"remerge={settings.remerge!r} is not one of 'mean', 'never'.")
    if settings.attention not in ATTENTION:
        raise ConfigError(f"attention={settings.attention!r} is not one of {', '.join(ATTENTION)}.")
    _check_ratio("min_ratio", settings.min_ratio, "FLOP ratio")
    if settings.matching is not None:
        asked_by(settings.matching)
    _check_planning(settings)
    hardware: Any = settings.hardware
    hardware = device_model(hardware) if isinstance(hardware, Mapping) else hardware
    protect = _protect(settings.protect)
    return replace(settings, protect=protect, hardware=hardware).with_r(settings.r)


def _plain(r: Any) -> Any:
    """``r`` in numbers of Python's own, also where numpy or torch made them."""
    if isinstance(r, tuple):
        return tuple(map(_plain, r))
    if is_list(r):
        return Entries(map(_plain, r))
    if is_real(r):
        return float(r)
    return operator.index(r) if hasattr(r, "__index__") else copy.copy(r)


def check_r(r: Any, rounding: Rounding) -> None:
    """Check ``r`` as far as that goes without the number of layers."""
    asked(r, len(r) if is_list(r) else 1, rounding)


def _whole(value: Any) -> Any:
    """A whole number as Python's own, also where numpy made it; anything else as it is."""
    try:
        return value if isinstance(value, (bool, torch.Tensor)) else operator.index(value)
    except TypeError:  # an array has a way to be a number, which it may not be
        return value


def _check_planning(settings: Settings) -> None:
    _check_count("every", settings.every, "a number of layers")
    if not isinstance(settings.align, str) or settings.align != "auto":
        _check_count("align", settings.align, "'auto' or a number of tokens")
    if settings.batch is not None:
        _check_count("batch", settings.batch, "None or a number of images")
    _check_ratio("min_speedup", settings.min_speedup, "speed-up")
    device_model(settings.hardware)
    if settings.min_speedup not in (0.0, 1.0) and settings.batch is None:
        raise ConfigError(
            f"min_speedup={settings.min_speedup!r} is what the estimate has to reach, which needs "
            "the number of images of a call: pass batch=."
        )
    if settings.hardware is not None and settings.batch is None:
        raise ConfigError(
            f"hardware={settings.hardware!r} is for the estimate, which needs the number of images "
            "of a call too: pass batch=."
        )


def _check_count(name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} is not {what} from 1 upwards.")


def _check_ratio(name: str, value: Any, what: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value < math.inf:
        raise ConfigError(f"{name}={value!r} is not a {what} from 0.0 (always apply) upwards.")


def _protect(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    value = tuple(map(_whole, value)) if isinstance(value, tuple) else _whole(value)
    pair = (value, 0) if isinstance(value, int) and not isinstance(value, bool) else value
    good = (
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in pair)
    )
    if not good:
        raise ConfigError(
            f"protect={value!r} is not a number of tokens at the front, or a pair (front, back)."
        )
    return pair


def rule_table(rules: Iterable[tuple[Any, Rule]] | Mapping[Any, Rule]) -> dict[str, Rule]:
    """User rules by op name; an op may be given as ``torch.ops.x.y``, an overload, or ``"x.y"``."""
    try:
        pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
        named = {_op_name(op): rule for op, rule in pairs}
    except ConfigError:
        raise
    except (TypeError, ValueError):
        raise ConfigError(
            f"rules={rules!r} is not a list of pairs such as (torch.ops.namespace.name, rule)."
        ) from None
    for name, rule in named.items():
        if not callable(rule):
            raise ConfigError(f"rules: the rule for {name}, {rule!r}, is not a function.")
        try:
            inspect.signature(rule).bind(None)
        except TypeError as error:
            raise ConfigError(
                f"rules: the rule for {name} is called with one argument, a context: {error}."
            ) from None
        except ValueError:
            pass  # some of C's functions do not say what they take
    return named


def _op_name(op: Any) -> str:
    if isinstance(op, torch._ops.OpOverload):
        return op._schema.name.replace("::", ".")
    if isinstance(op, torch._ops.OpOverloadPacket):
        return op._qualified_op_name.replace("::", ".")
    if isinstance(op, str):
        if not _is_op(op):
            raise ConfigError(
                f"rules: {op!r} is not the name of an op. Names are as in 'aten.relu', a namespace "
                "and a name, without an overload; register an op of your own first."
            )
        return op
    raise ConfigError(f"rules: {op!r} is not an op. Give torch.ops.namespace.name or its name.")


def _is_op(name: str) -> bool:
    namespace, _, own = name.rpartition(".")
    try:
        return isinstance(getattr(getattr(torch.ops, namespace), own), torch._ops.OpOverloadPacket)
    except (AttributeError, RuntimeError):
        return False


def reject_unknown(options: Iterable[str], known: Sequence[str] = OPTIONS) -> None:
    """Raise ConfigError for option names that are not ``known``, with the closest ones that are."""
    for name in options:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(close)}?" if close else f" Options: {', '.join(known)}."
        raise ConfigError(f"{name!r} is not an option.{hint}")
