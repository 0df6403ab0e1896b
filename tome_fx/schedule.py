"""From ``r`` to tokens removed at each layer (section 3.2 and appendix of the paper)."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Literal, SupportsFloat, TypeAlias, TypeGuard

from tome_fx.errors import ConfigError
from tome_fx.grouping import plain

_MOST = 2**53  # beyond it a float is no whole number of tokens
Rounding: TypeAlias = Literal["truncate", "exact"]
FORMS = (
    "an int >= 0, a pair (r, inflect) with inflect from -1.0 to 1.0, "
    "a list of ints >= 0, or a share of the tokens from 0.0 to below 1.0"
)


def resolve(
    r: object, tokens: int, layers: int, rounding: Rounding = "truncate"
) -> tuple[int, ...]:
    """Tokens removed at each layer of one stream of ``tokens`` unprotected tokens, clamped.

    See :func:`asked` for the forms of ``r`` and the errors.
    """
    wanted = asked(r, layers, rounding)
    return tuple(merge.removed for merge in plain(wanted, tokens, share(r)))


def asked(r: object, layers: int, rounding: Rounding = "truncate") -> tuple[int, ...]:
    """Tokens to remove at each of ``layers`` layers, before any clamping.

    Args:
        r: see below; a float is a share of the tokens that reach a layer, so its counts depend on
            them: it resolves to zeros here and :func:`share` gives it.

            - int: the same at each layer.
            - ``(r, inflect)``: linear from ``r (1 - inflect)`` to ``r (1 + inflect)``, so that
              ``(16, -1.0)`` falls from 32 to 0.
            - list of int: one each layer; missing ones are 0.
        rounding: ``truncate`` cuts each layer's number, as the paper does; ``exact`` rounds so
            that the total is exactly ``r * layers``.

    Raises:
        ConfigError: the value, its field and the allowed range.
    """
    if rounding not in ("truncate", "exact"):
        raise ConfigError(f"rounding={rounding!r} is not one of 'truncate', 'exact'.")
    if share(r) is not None:
        return (0,) * layers
    if isinstance(r, tuple) and len(r) == 2:
        count, inflect = _count(r[0], r), _inflect(r[1], r)
        if count > _MOST:
            raise ConfigError(f"r={r!r}: more tokens than any model has.")
        return _linear(count, inflect, layers, rounding)
    if is_list(r):
        row = tuple(_count(value, r) for value in r)
        if len(row) > layers:
            raise ConfigError(
                f"r={r!r} has {len(row)} entries, but the model has {layers} layers to merge at. "
                f"Give at most {layers}."
            )
        return row + (0,) * (layers - len(row))
    return (_count(r, r),) * layers


def is_list(r: object) -> TypeGuard[Sequence[object]]:
    """Does ``r`` name each layer's number by itself?"""
    pair = isinstance(r, tuple) and len(r) == 2
    return isinstance(r, Sequence) and not isinstance(r, (str, bytes)) and not pair


def share(r: object) -> float | None:
    """The share of tokens that a float ``r`` removes at each layer; None for any other form."""
    return _checked_share(r) if is_real(r) else None


def is_real(value: object) -> TypeGuard[SupportsFloat]:
    """Is it a float, numpy's own of any width too?"""
    whole = isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and not whole and not isinstance(value, bool)


def wants(r: object) -> bool:
    """Does ``r`` ask for any merge at all?"""
    return bool(share(r)) or any(asked(r, len(r) if is_list(r) else 1))


def _linear(r: int, inflect: float, layers: int, rounding: Rounding) -> tuple[int, ...]:
    if layers < 2:
        return (r,) * layers
    first = r * (1.0 - inflect)
    step = (2 * r - 2 * first) / (layers - 1)
    row = [first + step * index for index in range(layers)]
    if rounding == "truncate":
        return tuple(int(value) for value in row)
    # Rounding the running total keeps every prefix within one token of the line.
    totals = [0, *(round(sum(row[: i + 1]) + 1e-9) for i in range(layers))]
    return tuple(after - before for before, after in itertools.pairwise(totals))


def _count(value: object, whole: object) -> int:
    if isinstance(value, (bool, float, str)):
        raise ConfigError(f"r={whole!r}: {value!r} is not a token count. r is {FORMS}.")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"r={whole!r}: {value!r} is not a token count. r is {FORMS}.") from None
    if number < 0:
        raise ConfigError(f"r={whole!r}: {number} is negative. r is {FORMS}.")
    return number


def _inflect(value: object, whole: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"r={whole!r}: inflect {value!r} is not a number. r is {FORMS}.")
    if not -1.0 <= float(value) <= 1.0:
        raise ConfigError(f"r={whole!r}: inflect {value!r} is outside -1.0 to 1.0.")
    return float(value)


def _checked_share(r: SupportsFloat) -> float:
    value = float(r)
    if math.isnan(value) or not 0.0 <= value < 1.0:
        raise ConfigError(f"r={r!r} is not a share of the tokens. r is {FORMS}.")
    return value
