"""Axes, drawn by hypothesis, and short spellings of their factors."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from hypothesis import strategies as st

from tome_fx.graph.axes import Atom, Axis, Batch, Concat, Factor, Origin, Stream

PRIME = 1_000_003
BATCH = Batch(PRIME)


def atom(size: int, node: str = "x", kind: str = "input", place: int = 0) -> Atom:
    return Atom(size, Origin(kind, node, (place,)))


def stream(size: int, id_: int = 0, level: int = 0, merged: int = 0, total: bool = False) -> Stream:
    return Stream(id_, size, level, merged, total)


def row(front: int, size: int, node: str = "cls", **options: int) -> Axis:
    """``[front|S]``: class tokens and patches."""
    return (Concat(((atom(front, node),), (stream(size, **options),))),)


kinds = st.sampled_from(["input", "conv", "channel", "constant", "literal", "unknown"])
names = st.sampled_from(["a", "b", "c"])
# An extent of 1 has no place in a reshape, so nothing of it can come back.
atoms = st.builds(atom, st.integers(2, 12), names, kinds, st.integers(0, 2))
streams = st.builds(
    lambda size, id_, level, total: stream(size, id_, level, min(level, size - 1), total),
    st.integers(2, 9),
    st.integers(0, 2),
    st.integers(0, 2),
    st.booleans(),
)
concats = st.lists(
    st.one_of(atoms, streams).map(lambda factor: (factor,)), min_size=2, max_size=3
).map(lambda parts: Concat(tuple(parts)))
factors: st.SearchStrategy[Factor] = st.one_of(atoms, atoms, streams, concats)


@st.composite
def values(draw: st.DrawFn) -> tuple[Axis, ...]:
    """The axes of a tensor: up to five factors, at most one of them the batch, dealt to axes."""
    flat = draw(st.lists(factors, min_size=1, max_size=5))
    if draw(st.booleans()):
        flat.insert(draw(st.integers(0, len(flat))), BATCH)
    return draw(groupings(flat))


@st.composite
def groupings(draw: st.DrawFn, flat: Sequence[Factor]) -> tuple[Axis, ...]:
    """The factors in their order, dealt to axes; some axes hold none."""
    cuts = draw(st.lists(st.integers(0, len(flat)), max_size=4).map(sorted))
    edges = [0, *cuts, len(flat)]
    return tuple(tuple(flat[a:b]) for a, b in itertools.pairwise(edges))


def factorings(total: int) -> st.SearchStrategy[list[int]]:
    """Shapes of ``total`` elements: its prime factors in any order, multiplied in groups."""

    def make(seed: int) -> list[int]:
        rng = random.Random(seed)
        parts = primes(total)
        rng.shuffle(parts)
        shape = [1]
        for part in parts:
            if rng.random() < 0.5:
                shape.append(part)
            else:
                shape[-1] *= part
        return shape

    return st.integers(0, 2**20).map(make)


def primes(number: int) -> list[int]:
    """The prime factors of a number, the batch's stand-in among them."""
    found = []
    while number % PRIME == 0:
        found.append(PRIME)
        number //= PRIME
    for divisor in range(2, math.isqrt(number) + 1):
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
    return [*found, number] if number > 1 else found
