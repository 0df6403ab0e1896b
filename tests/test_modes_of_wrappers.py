"""`train()` and `eval()` of what holds a result: a wrapper may write `training` before it asks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY

WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "compiled": lambda fast: torch.compile(fast, backend="eager"),
    "a part": lambda fast: nn.Sequential(torch.compile(fast, backend="eager")),
    "parallel": lambda fast: nn.DataParallel(torch.compile(fast, backend="eager")),
    "not compiled": lambda fast: nn.Sequential(fast),
}


def drops(model: nn.Module) -> bool:
    """Do two calls differ?"""
    x = images(4)
    return not torch.equal(model(x), model(x))


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("kind", "first"), [*[(kind, True) for kind in WRAPPERS], ("compiled", False)]
)
def test_a_result_follows_what_holds_it(kind: str, first: bool) -> None:
    torch._dynamo.reset()
    fast = tome_fx.transform(tiny(drop_rate=0.5, proj_drop_rate=0.5).train(first), 2)
    whole = WRAPPERS[kind](fast)
    for mode in (not first, first, not first):
        whole.train(mode)
        assert fast.training is mode
        assert drops(fast) is mode
        assert drops(whole) is mode


@torch.no_grad()
@pytest.mark.few(1)
@pytest.mark.parametrize("kind", WRAPPERS)
def test_modes_that_are_restored_one_by_one_are_followed(kind: str) -> None:
    """As Lightning does behind each validation: `training` is written, nothing is called."""
    torch._dynamo.reset()
    fast = tome_fx.transform(tiny(drop_rate=0.5, proj_drop_rate=0.5).train(), 2)
    whole = WRAPPERS[kind](fast)
    before = [(part, part.training) for part in whole.modules()]
    whole.eval()
    for part, mode in before:
        part.training = mode
    assert drops(fast)
    assert drops(whole)
    assert [part.training for part in whole.modules()] == [mode for _, mode in before]


@torch.no_grad()
def test_a_mode_that_is_written_is_that_of_the_program() -> None:
    fast = tome_fx.transform(tiny(drop_rate=0.5).eval(), 2)
    fast.training = True
    assert drops(fast)
    fast.training = False
    assert not drops(fast)
    with pytest.raises(ValueError, match="training=1 is not True or False"):
        fast.training = 1  # type: ignore[assignment]
    assert not any(part.training for part in fast.modules())
    for part in fast.modules():
        part.training = True
    assert drops(fast)
    assert not any(part.training for part in fast.eval().modules())


def test_a_mode_that_cannot_be_captured_is_not_taken_on() -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("no training here")
            out: torch.Tensor = self.inner(x)
            return out

    fast = tome_fx.transform(Refusing().eval(), 2, example_inputs=images(2))
    with pytest.raises(tome_fx.CaptureError, match="no training here"):
        fast.training = True
    assert not fast.training
    assert fast(images(2)).shape[0] == 2


def test_a_module_of_an_exported_program_holds_one_mode() -> None:
    """Its own ``train`` refuses, so that of its result must."""
    x = images(4)
    for mode in (False, True):
        program = torch.export.export(tiny(drop_rate=0.5).train(mode), (x,)).module()
        fast = tome_fx.transform(program, 2, example_inputs=x)
        for result in (fast, copy.copy(fast), copy.deepcopy(fast)):
            assert result.training == mode
            with pytest.raises(tome_fx.CaptureError, match="holds one mode only"):
                result.train(not mode)
            assert drops(result.train(mode)) == mode


def test_what_holds_a_module_of_an_exported_program_has_both_modes() -> None:
    program = torch.export.export(tiny(), (images(2),)).module()
    fast = tome_fx.transform(nn.Sequential(program, nn.Dropout()), 2, example_inputs=images(2))
    assert fast.training  # torch lets nobody say otherwise of the model
    assert not torch.equal(fast(images(2)), fast(images(2)))
    assert torch.equal(fast.eval()(images(2)), fast(images(2)))


def test_a_train_of_an_object_is_not_called() -> None:
    model, asked = tiny(), []
    model.train = lambda mode=True: asked.append(mode)  # type: ignore[method-assign,assignment]
    tome_fx.transform(model, 2)
    assert not asked
