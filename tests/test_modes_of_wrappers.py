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


@pytest.mark.parametrize("within", [False, True])
def test_a_module_of_an_exported_program_holds_one_mode(within: bool) -> None:
    """Its own ``train`` refuses, so that of its result must: the program is that of evaluation."""
    model, x = tiny(drop_rate=0.5), images(2)
    program = torch.export.export(model, (x,)).module()
    whole = nn.Sequential(program) if within else program
    fast = tome_fx.transform(whole, 2, example_inputs=x)
    assert fast.training == within  # torch's word for what holds it
    for result in (fast, copy.copy(fast), copy.deepcopy(fast)):
        with pytest.raises(tome_fx.CaptureError, match="holds one mode only"):
            result.train(not within)
        assert torch.equal(result.train(within)(x), fast(x))
