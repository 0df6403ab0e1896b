"""Nothing of a capture stays behind: no references to weights, no modes of fake tensors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, images, tiny

pytestmark = TINY


def looks_at_values(body: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = body(x)
    return y + 1 if y.sum() > 0 else y


def counts_its_images(body: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = body(x)
    return y.reshape(len(x), -1) + torch.zeros(len(x), 1)


def transformed(model: nn.Module) -> None:
    tome_fx.transform(model, 2, example_inputs=images())


def trained_and_planned(model: nn.Module) -> None:
    fast = tome_fx.transform(model, 2, example_inputs=images())
    fast.train()
    fast.r = 1


def explained(model: nn.Module) -> None:
    tome_fx.explain(model, 2, example_inputs=images())


def failed(model: nn.Module) -> None:
    with pytest.raises(tome_fx.CaptureError):
        tome_fx.transform(Around(looks_at_values, model), 2, example_inputs=images())


def counted(model: nn.Module) -> None:
    tome_fx.transform(Around(counts_its_images, model), 2, example_inputs=images())


def modes() -> int:
    gc.collect()
    return sum(type(value) is FakeTensorMode for value in gc.get_objects())


@pytest.mark.parametrize("use", [transformed, trained_and_planned, explained, failed, counted])
def test_nothing_stays_behind(use: Callable[[nn.Module], None]) -> None:
    model = tiny()
    use(model)  # what a first use leaves in torch's own tables
    before = modes()
    use(model)
    assert modes() <= before
    assert not any(map(weakref.getweakrefcount, model.parameters()))


def test_a_kept_result_holds_no_references_to_the_weights_of_its_model() -> None:
    model = tiny()
    fast = tome_fx.transform(model, 2, example_inputs=images())
    other = nn.Parameter(torch.zeros_like(model.head.weight))
    torch.utils.swap_tensors(model.head.weight, other)
    assert not model.head.weight.any()
    assert fast.head.weight is model.head.weight
