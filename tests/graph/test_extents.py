"""Symbolic sizes as integers: a prime for each symbol, and arithmetic as usual."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.profiles import examples
from tome_fx.graph.extents import _PRIMES, Extents, tensor_value


def symbols(number: int) -> list[torch.SymInt]:
    environment = ShapeEnv()
    return [environment.create_unbacked_symint() for _ in range(number)]


def test_stand_ins_are_primes_wider_than_any_axis() -> None:
    assert len(set(_PRIMES)) == len(_PRIMES)
    for number in _PRIMES:
        assert number > 10**6
        assert all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def test_plain_sizes_are_themselves() -> None:
    extents = Extents()
    assert [extents.of(size) for size in (0, 1, 197)] == [0, 1, 197]
    assert extents.shape(torch.empty(2, 0, 3)) == (2, 0, 3)


@examples(50)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20))
def test_an_expression_takes_the_stand_ins_of_its_symbols(a: int, b: int, c: int) -> None:
    batch, other = symbols(2)
    extents = Extents()
    first, second = extents.of(batch), extents.of(other)
    assert extents.of(batch * a + other * b + c) == first * a + second * b + c
    assert extents.of(batch * other) == first * second
    assert extents.of(batch * a) % first == 0
    assert a * b % first != 0


def test_a_symbol_keeps_its_stand_in_and_shares_it_with_none() -> None:
    many = symbols(len(_PRIMES) + 12)
    extents = Extents()
    numbers = [extents.of(symbol) for symbol in many]
    assert len(set(numbers)) == len(many)
    assert [extents.of(symbol) for symbol in reversed(many)] == numbers[::-1]


def test_the_order_of_first_use_decides() -> None:
    a, b = symbols(2)
    assert Extents().of(a) == Extents().of(b) == _PRIMES[0]


def test_every_symbol_may_be_one_size() -> None:
    a, b = symbols(2)
    extents = Extents(5)
    assert [extents.of(size) for size in (a, b, a * 3 + 1, 7)] == [5, 5, 16, 7]


def test_the_value_of_a_node() -> None:
    node = Graph().placeholder("x")
    assert tensor_value(node) is None
    node.meta["val"] = [torch.empty(1)]
    assert tensor_value(node) is None
    node.meta["val"] = torch.empty(2, 3)
    assert tensor_value(node) is node.meta["val"]
