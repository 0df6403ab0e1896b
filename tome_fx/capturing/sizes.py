"""What a size of a trace would be for other batches than the example's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Scenario:
    """So many images more than in the example.

    Inputs that have numbers of their own (images, texts) have each another number more, so that
    neither their order nor their ratio stays: times its place among them, ``last`` first or not.
    """

    more: int = 0
    last: bool = False


def sized(number: Any, scenario: Scenario) -> Any:
    """A number of sizes in a scenario; any other as it is.

    Raises:
        ValueError: it follows from values.
    """
    if not isinstance(number, NUMBERS):
        return number
    node: Any = number.node
    if node.hint is None:
        raise ValueError("it follows from values")
    if not scenario.more:
        return node.hint
    env = node.shape_env
    # torch 2.11 has the older name, which newer ones warn of.
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val
    order = sorted(known, key=str, reverse=scenario.last)
    sizes = {
        symbol: int(known[symbol]) + scenario.more * (1 + order.index(symbol))
        for symbol in node.expr.free_symbols
    }
    return node.pytype(node.expr.subs(sizes))
