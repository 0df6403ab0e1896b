"""A copy of a result runs the programs that the result has: nothing is captured for it."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import tome_fx
from tests.laws.common import TINY, distance
from tests.test_leaves import inputs, transformed
from tests.test_leaves import model as with_leaves
from tests.test_parts import copied
from tests.tiny import images, tiny
from tome_fx import module

pytestmark = TINY
Copier = Callable[[Any], Any]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The modes in which something is captured, from now on."""
    real, seen = module.locate_program, list[bool]()

    def noted(model: Any, *args: Any) -> Any:
        seen.append(getattr(model, "training", False))
        return real(model, *args)

    monkeypatch.setattr(module, "locate_program", noted)
    return seen


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_nothing_is_captured(copier: Copier, captures: list[bool]) -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    fast.train()
    fast.eval()
    assert captures == [False, True]
    other = copier(fast)
    assert other.report == fast.report
    assert torch.equal(other(x), fast(x))
    assert torch.equal(other.token_map(x), fast.token_map(x))
    other.r = 1
    assert (fast.schedule, other.schedule) == ((2, 2), (1, 1))
    other.train()
    assert (fast.training, other.training) == (False, True)
    assert captures == [False, True]
    assert other.double()(x.double()).dtype is torch.float64
    assert captures == [False, True, True]
    assert fast(x).dtype is torch.float32


def test_another_mode_is_captured_for_it(captures: list[bool]) -> None:
    fast = tome_fx.transform(tiny(), 2)
    copy.copy(fast).train()
    assert captures == [False, True]
    fast.train()
    assert captures == [False, True, True]


def test_averages_of_weights(captures: list[bool]) -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    average = AveragedModel(fast)
    average.update_parameters(fast)
    with torch.no_grad():
        fast.head.bias.add_(2.0)
    before = average(x)
    average.update_parameters(fast)
    assert distance(average(x).detach(), before.detach() + 1.0) < 1e-5
    assert captures == [False]


class Numbers(nn.Module):
    """What it makes of numbers is a constant of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * torch.tensor([1.5, *range(1, 10)])


@copied
def test_constants_come_along(copier: Copier) -> None:
    x = images(2)
    fast = tome_fx.transform(Numbers().eval(), 2, example_inputs=x)
    names = [name for name, _ in fast.named_buffers() if name.startswith("_eval_constant_")]
    assert names
    other = copier(fast)
    assert torch.equal(other(x), fast(x))
    assert other.state_dict().keys() == fast.state_dict().keys()
    own = other.get_buffer(names[0])
    assert torch.equal(own, fast.get_buffer(names[0]))
    assert (own is fast.get_buffer(names[0])) is (copier is copy.copy)


class Branched(nn.Module):
    """One of its branches makes numbers, which a part of the program holds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        table = [1.0, *range(1, 10)]
        return torch.cond(y.sum() > -1e9, lambda y: y * torch.tensor(table), lambda y: y - 1, (y,))


@torch.no_grad()
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_what_a_part_holds_is_the_copys_own(copier: Copier) -> None:
    x = images(3)
    fast = tome_fx.transform(Branched().eval(), 2, example_inputs=x)
    wanted, other = fast(x), copier(fast)
    assert torch.equal(other(x), wanted)
    other.double()
    fast.r = [2, 2]
    assert torch.equal(fast(x), wanted)


class Asked(nn.Module):
    """A tower with an argument that it does not look at, and one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor, unread: bool = False, doubled: bool = False) -> Tensor:
        return self.body(x) * 2 if doubled else self.body(x)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_each_asks_its_own_model(copier: Copier) -> None:
    x = images(2)
    fast = tome_fx.transform(Asked(), 2, example_inputs=x)
    wanted, other = fast(x), copier(fast)
    assert torch.equal(fast(x, unread=True), wanted)
    del fast
    gc.collect()
    assert torch.equal(other(x, unread=True), wanted)
    with pytest.raises(tome_fx.ShapeError, match="doubled"):
        other(x, doubled=True)


@copied
@pytest.mark.few(1)
def test_modules_that_stay_calls_are_its_own(copier: Copier, captures: list[bool]) -> None:
    fast = transformed(with_leaves())
    assert len(captures) == 1
    other, given = copier(fast), inputs()
    assert len(captures) == 2
    assert torch.equal(other(*given), fast(*given))


@copied
def test_a_copy_of_a_copy(copier: Copier) -> None:
    fast, x = tome_fx.transform(Numbers().eval(), 2, example_inputs=images(2)), images(3)
    again = copier(copier(fast))
    again.r = 3
    assert torch.equal(
        again(x), tome_fx.transform(Numbers().eval(), 3, example_inputs=images(2))(x)
    )
    assert fast.schedule == (2, 2)
