"""A matching of the user's own: a function that says which tokens merge, in place of the paper's.

    plan = match(similarity(metric, 1), 16)  ->  pairs = mine(metric=metric, r=16)
                                                 plan = plan_of_pairs(pairs, metric, 16)

The function names what it needs; nothing else is computed for it. What it answers is a plan like
any other, so that whatever is said of plans holds: the laws of merging do not ask which tokens a
plan takes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

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
        """Its answer. Choices of indices have no gradient, and autocast does not blur scores."""
        given = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}
        kind = next((v.device.type for v in given.values() if isinstance(v, Tensor)), "meta")
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return self.function(**given)
        with torch.autocast(kind, enabled=False):
            return self.function(**given)


def name_of(function: Function) -> str:
    """A function's own name; of a partial one, that of what it calls; of an object, its class's."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))


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
    asks = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in ASKED and parameter.kind is not parameter.POSITIONAL_ONLY:
            asks.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"matching: {name} asks for {parameter.name!r}, which there is not. It is given "
                f"by keyword what its parameters are named for: {', '.join(ASKED)}."
            )
    if not asks:
        raise ConfigError(
            f"matching: {name} asks for nothing of the tokens. Its parameters are some of "
            f"{', '.join(ASKED)}."
        )
    return tuple(asks)
