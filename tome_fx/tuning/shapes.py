"""Shapes of schedules: how merges are shared out over the layers, whatever their number.

A shape is a weight for each layer; times a number of tokens, rounded so that every prefix is within
half a token of its share, it is a schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Shape: TypeAlias = tuple[float, ...]


def spread(shape: Shape, tokens: int) -> list[int]:
    """Return ``tokens`` shared out over the layers."""
    whole = sum(shape) or 1.0
    totals = [round(tokens * part / whole) for part in itertools.accumulate(shape)]
    return [after - before for before, after in itertools.pairwise([0, *totals])]


def families(layers: int) -> dict[str, Shape]:
    """Return the shapes that a search starts from, by name; those that are alike only once.

    ``linear -1`` is the paper's decreasing schedule: it falls to nothing at the last layer.
    """
    line = [index / max(1, layers - 1) for index in range(layers)]
    half = (layers + 1) // 2
    named: dict[str, Shape] = {"constant": (1.0,) * layers}
    for inflect in (-1.0, -0.5, 0.5, 1.0):
        named[f"linear {inflect:g}"] = tuple(1 - inflect + 2 * inflect * x for x in line)
    named["first half"] = tuple(float(i < half) for i in range(layers))
    named["second half"] = tuple(float(i >= layers - half) for i in range(layers))
    for step in (2, 3):
        named[f"every {step}"] = tuple(float(i % step == 0) for i in range(layers))
    found: dict[Shape, str] = {}
    for name, shape in named.items():
        whole = sum(shape)
        if whole:
            found.setdefault(tuple(round(x / whole, 6) for x in shape), name)
    return {name: named[name] for name in found.values()}


def moves(layers: int, strength: float) -> Iterator[tuple[range, float]]:
    """Yield groups of layers and what their weight is multiplied by, coarse to fine.

    The other layers make up for it, since a shape is scaled to the time that is wanted.
    """
    count = 2
    while True:
        count = min(count, layers)
        edges = [round(layers * i / count) for i in range(count + 1)]
        for first, last in itertools.pairwise(edges):
            for factor in (strength, 1.0 / strength):
                yield range(first, last), factor
        if count == layers:
            return
        count *= 2


def moved(shape: Shape, group: Sequence[int], factor: float) -> Shape:
    """Return the shape with the weight of a group of layers multiplied.

    A layer without weight gets some where it is to grow, and one of hardly any loses it.
    """
    mean = sum(shape) / len(shape)
    start = 0.25 * mean

    def weight(old: float) -> float:
        new = max(old, start) * factor if factor > 1 else old * factor
        return 0.0 if new < 0.1 * mean else new

    return tuple(weight(x) if i in group else x for i, x in enumerate(shape))
