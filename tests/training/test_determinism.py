"""The same gradients to the bit each time, also beside other threads that train the program."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.laws.test_l5_purity import in_threads
from tests.laws.test_l6_determinism import deterministic
from tests.tiny import images, tiny

pytestmark = TINY


def gradients(program: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(program(x).square().mean(), list(program.parameters())))


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_gradients_are_the_same_each_time() -> None:
    model, x = tiny(depth=3).train(), images(4)
    fast = tome_fx.transform(model, 2)
    first = gradients(fast, x)
    gradients(fast, images(3, seed=5))  # nothing stays behind
    assert equal(gradients(fast, x), first)
    with deterministic():
        assert equal(gradients(fast, x), first)
        assert equal(gradients(tome_fx.transform(model, 2), x), first)
    flat = torch.zeros_like(x)  # everything is a tie
    assert equal(gradients(fast, flat), gradients(fast, flat))


def test_threads_with_one_program() -> None:
    fast = tome_fx.transform(tiny().train(), 2)
    batches = [images(2 + i, seed=i) for i in range(3)]
    expected = [gradients(fast, x) for x in batches]
    found = in_threads([lambda x=x: [gradients(fast, x) for _ in range(5)] for x in batches])
    for several, wanted in zip(found, expected, strict=True):
        assert all(equal(one, wanted) for one in several)


def test_two_forwards_before_a_backward() -> None:
    """Graphs of several calls live side by side."""
    fast, one, two = tome_fx.transform(tiny().train(), 2), images(3), images(3, seed=1)
    first, second = gradients(fast, one), gradients(fast, two)
    y, z = fast(one), fast(two)
    parameters = list(fast.parameters())
    later = torch.autograd.grad(z.square().mean(), parameters)
    assert equal(list(later), second)
    assert equal(list(torch.autograd.grad(y.square().mean(), parameters)), first)
