"""`train()` and `eval()` of what holds a result: a wrapper may write `training` before it asks."""

from __future__ import annotations

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
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", WRAPPERS)
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
def test_a_mode_that_was_only_written_is_taken_up() -> None:
    fast = tome_fx.transform(tiny(drop_rate=0.5), 2)
    fast.training = True
    assert drops(fast.train())
    fast.training = True
    assert not drops(fast.eval())
    for part in fast.modules():
        part.training = True
    assert not any(part.training for part in fast.eval().modules())
