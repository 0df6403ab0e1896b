"""Casts and writes that a captured program keeps, whatever becomes of the model later."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.test_modes import with_constants
from tests.tiny import Around, images, tiny

pytestmark = TINY


def scaled(body: nn.Module, x: Tensor) -> Tensor:
    """A constant made in forward."""
    return body(x) * torch.tensor(0.25)  # type: ignore[no-any-return]


def narrowed(body: nn.Module, x: Tensor) -> Tensor:
    """The same in float32, whatever the model is in."""
    return body(x).float() * torch.tensor(0.1)  # type: ignore[no-any-return]


def rewritten(body: nn.Module, x: Tensor) -> Tensor:
    """The same, and written to through views that are read later."""
    y = body(x).t().float().t().contiguous()
    y.view(-1)[::2] *= 2
    y.view(-1)[::3] += 1
    return y * 0.1


@pytest.mark.few(1)
@pytest.mark.parametrize("function", [None, scaled, narrowed, rewritten])
def test_a_cast_of_the_source(function: Callable[..., Any] | None) -> None:
    """It changes the shared parameters; the result follows."""
    model, x = tiny() if function is None else Around(function), images().double()
    fast = tome_fx.transform(model, 0, example_inputs=images())
    model.double()
    assert {p.dtype for p in fast.parameters()} == {torch.float64}
    assert torch.equal(fast(x), model(x))
    fast.r = 1
    merged = tome_fx.transform(model, 1, example_inputs=x)
    assert torch.equal(fast(x), merged(x))


def test_a_cast_of_a_source_that_casts_to_its_own_dtype() -> None:
    """The program has the dtype that this was: it is refused, and never wrong."""
    model, x = Around(with_constants), images().double()
    fast = tome_fx.transform(model, 0, example_inputs=images())
    model.double()
    with pytest.raises(RuntimeError, match="same dtype"):
        fast(x)
    again = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(again(x), model(x))


class Averaged(nn.Module):
    """Statistics kept in float32, and copies of what it holds beside the result."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x.to(self.mean.device)) - self.mean
        self.mean.float().lerp_(y.mean(0), 0.5)
        self.calls.add_(1)
        return y, self.body.head.bias.to(torch.float32, copy=True)


@torch.no_grad()
def test_casts_where_a_model_writes() -> None:
    """Through a cast that changes nothing to a buffer, and never to what was copied."""
    model, x = Averaged().eval(), images()
    fast, other = tome_fx.transform(model, 0, example_inputs=x), copy.deepcopy(model)
    for _ in range(3):
        (own, bias), (expected, _) = fast(x), other(x)
        assert torch.equal(own, expected)
        bias.zero_()
    assert torch.equal(model.mean, other.mean)
    assert torch.equal(model.body.head.bias, other.body.head.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x)[0], other(x)[0]), "where a value is moved to says no dtype"


@pytest.mark.parametrize("written", [False, True])
def test_what_is_detached_in_place(written: bool) -> None:
    def detached(body: nn.Module, x: Tensor) -> Tensor:
        y = body(x)
        before = y + 1
        y.detach_()
        if written:
            before.view(-1)[::2] *= 2
            before.view(-1)[::3] += 1
        return before * y  # type: ignore[no-any-return]

    model, x = Around(detached), images().requires_grad_()
    fast = tome_fx.transform(model, 0, example_inputs=images())
    (own,), (expected,) = (torch.autograd.grad(m(x).sum(), x) for m in (fast, model))
    assert torch.equal(own, expected)
