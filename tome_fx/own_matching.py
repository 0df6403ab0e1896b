"""A matching of the user's own: a function that says which tokens merge, in place of the paper's.

    plan = match(similarity(metric, 1), 16)  ->  pairs = mine(metric=metric, r=16)
                                                 plan = plan_of_pairs(pairs, metric, 16)

The function names what it needs. What it answers is a plan like
any other, so that whatever is said of plans holds: the laws of merging do not ask which tokens a
plan takes.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from tome_fx.errors import ConfigError

Function: TypeAlias = Callable[..., tuple[Tensor, Tensor]]

# What a function can ask for: ``B`` images, ``n`` unprotected tokens of a row, ``H`` heads.
ASKED: Mapping[str, str] = MappingProxyType(
    {
        "metric": "[B, n, C], the mean over heads of K",
        "r": "how many tokens to merge away",
        "keys": "[B, H, n, C], K by head",
        "x": "[B, n, channels], the tokens that are about to merge",
        "size": "[B, n], how many tokens of the image each stands for",
        "position": "[B, n], where each stood among the tokens of the image",
    }
)


class OwnMatching:
    """A function of the user as a call of a graph.

    Attributes:
        asks: the names of its parameters, all of them in ``ASKED``.
        told: how messages name it.
    """

    def __init__(self, function: Function) -> None:
        self.function, self.asks = function, asked_by(function)
        self.told = name_of(function)
        # How a graph's code calls it.
        self.__name__ = self.__qualname__ = re.sub(r"\W", "_", f"matching_{self.told}")

    def __call__(self, **given: Any) -> tuple[Tensor, Tensor]:
        """Its answer. Choices of indices have no gradient, and autocast does not blur scores.

        It has copies: what it is given are values of the model, which it may write to.
        """
        given = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in given.items()}
        kind = next(v.device.type for v in given.values() if isinstance(v, Tensor))
        if torch.compiler.is_dynamo_compiling():
            return self._called(kind, given)
        with closures_allowed(given.values()):
            return self._called(kind, given)

    def _called(self, kind: str, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return self.function(**given)
        with torch.autocast(kind, enabled=False):
            return self.function(**given)


def closures_allowed(given: Iterable[Any]) -> AbstractContextManager[Any]:
    """A tracer of the graph as it stands meets tensors that a function holds, and no graph does."""
    fake = detect_fake_mode(list(given))
    return nullcontext() if fake is None else patch.object(fake, "allow_non_fake_inputs", True)


def name_of(function: Function) -> str:
    """A function's own name; of a partial one, that of what it calls; of an object, its class's."""
    function = _inner(function)
    return str(getattr(function, "__name__", type(function).__name__))


def _inner(function: Any) -> Any:
    """What a partial or decorated function calls."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def identity_of(function: Function) -> str:
    """What stands for its code: its name and place, and all of the file, so that an edit is seen.

    Neither what the file imports nor what a closure holds is part of it.
    """
    inner = _inner(function)
    code = getattr(inner, "__code__", None)
    place = f"{getattr(inner, '__qualname__', name_of(function))}"
    place += f":{code.co_firstlineno}" if code is not None else ""
    try:
        file = inspect.getsourcefile(inner if inspect.isroutine(inner) else type(inner))
        text = Path(file).read_bytes() if file else b""
    except (OSError, TypeError):  # written into a prompt
        text = repr((code.co_code, code.co_names)).encode() if code is not None else b""
    return f"{place} {hashlib.sha256(text).hexdigest()[:16]}"


def asked_by(function: Any) -> tuple[str, ...]:
    """What a function asks for, by the names of its parameters.

    Raises:
        ConfigError: it is no function, or one that asks for what there is not.
    """
    if isinstance(function, nn.Module):
        raise ConfigError(
            f"matching: {type(function).__name__} is a module, whose weights would neither move "
            "nor train with the model's. Give a function, without weights."
        )
    if not callable(function):
        raise ConfigError(f"matching={function!r} is not None or a function, say of (metric, r).")
    name = name_of(function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(
            f"matching: {name} does not say what it takes. Wrap it in a function of (metric, r)."
        ) from None
    bound = function.keywords if isinstance(function, functools.partial) else {}
    asks = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in bound:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(
                f"matching: {name} takes {parameter.name!r} by position alone, and is given what "
                "it asks for by keyword. Leave out the / in its signature."
            )
        if parameter.name in ASKED:
            asks.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"matching: {name} asks for {parameter.name!r}, which there is not. It is given "
                f"by keyword what its parameters are named for: {', '.join(ASKED)}."
            )
    if not {*asks} - {"r"}:
        raise ConfigError(
            f"matching: {name} asks for nothing of the tokens. Its parameters are some of "
            f"{', '.join(ASKED)}."
        )
    return tuple(asks)
