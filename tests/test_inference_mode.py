"""A serving script as a whole under ``torch.inference_mode``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


@torch.inference_mode()
def test_a_model_that_is_made_in_it() -> None:
    model, x = tiny(), images(3)
    assert model.head.weight.is_inference()
    assert torch.equal(tome_fx.transform(model, 0)(x), model(x))
    fast = tome_fx.transform(model, 2)
    assert fast.schedule == (2, 2)
    fast.train().eval()
    fast.r = 1
    assert fast(x).shape == (3, 10)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda fast: pickle.loads(pickle.dumps(fast)),
    "cast": lambda fast: fast.double(),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_result_that_changes_in_it(change: Callable[[Any], Any]) -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    before = fast(x).detach()
    with torch.inference_mode():
        other = change(fast)
        x = x.to(other.head.weight.dtype)
        torch.testing.assert_close(other(x).float(), before, rtol=1e-5, atol=1e-5)
        assert other.schedule == (2, 2)


class Asking(nn.Module):
    """A model with one buffer that was made in inference mode, which asks for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        with torch.inference_mode():
            self.register_buffer("off", torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y + self.off.clone() if torch.is_grad_enabled() else y  # type: ignore[no-any-return]


def test_a_buffer_that_is_made_in_it_stops_no_gradients() -> None:
    model, x = Asking().eval(), images(3)
    fast = tome_fx.transform(model, 0)
    assert torch.equal(fast(x), model(x))
    fast(x).sum().backward()
    assert model.body.head.weight.grad is not None
