"""What both families of drawn models share: one number to one model, widths, random weights."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import nn

T = TypeVar("T")


def seeded(make: Callable[[random.Random], T]) -> st.SearchStrategy[T]:
    """Values made from one drawn number.

    Hypothesis varies what it has drawn piece by piece, which gives many near-copies of few models.
    Here one number decides all, so that sixty models are sixty different ones. The price is that
    a failing model is not simplified; its ``repr`` shows what differs from the default.
    """
    return st.integers(0, 2**24 - 1).map(lambda number: make(random.Random(number)))


def widths(rng: random.Random, tokens: tuple[int, ...]) -> tuple[int, int, int]:
    """``(heads, head_dim, batch)``, every other time with one of ``tokens`` equal to something.

    Heads are at least four wide: keys of fewer dimensions make unequal tokens look the same.
    """
    n = rng.choice(tokens)
    kinds: list[list[tuple[int, int, int]]] = [
        [(h, n // h, 2) for h in (1, 2, 3, 4) if n % h == 0 and n // h >= 4],  # N == C
        [(n, 4, 2)] if n <= 12 else [],  # N == heads
        [(h, n, 2) for h in (1, 2, 3) if 4 <= n <= 16],  # N == head_dim
        [(2, 4, n)] if 2 <= n <= 10 else [],  # N == batch
        [(n // 3, 5, 2)] if n % 3 == 0 and n <= 15 else [],  # N == 3 * heads
    ]
    kinds = [kind for kind in kinds if kind]
    if kinds and rng.random() < 0.5:
        return rng.choice(rng.choice(kinds))
    return rng.randint(1, 4), rng.choice([4, 5, 6, 8]), rng.choice([2, 3])


def brief(config: Any) -> str:
    """The fields of a dataclass that differ from their defaults."""
    fields = [(f.name, getattr(config, f.name), f.default) for f in dataclasses.fields(config)]
    shown = [f"{name}={value!r}" for name, value, default in fields if value != default]
    return f"{type(config).__name__}({', '.join(shown)})"


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fill every floating parameter and buffer: gains near 1, the rest of a healthy size.

    The weights are a little larger than at initialisation, so that attention is far from uniform.
    Variances (``running_var``) stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        noise = draw(value.shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("weight", "gamma") and value.ndim == 1:
            noise = 1.0 + 0.3 * noise
        elif leaf == "running_var":
            noise = 0.5 + noise.abs()
        elif leaf.endswith("weight"):
            noise = 1.3 * noise / math.sqrt(max(1, value[0].numel()))
        else:
            noise = 0.4 * noise
        value.copy_(noise.to(value.dtype))
