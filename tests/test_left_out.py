"""Optional inputs that the example had, and a call lacks: named, and never taken for given."""

from __future__ import annotations

import copy
from enum import Enum

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, same, tiny

pytestmark = TINY


class Judged(nn.Module):
    """It gives a loss too where it is told the classes, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(
        self, x: Tensor, labels: Tensor | None = None, scale: float = 1.0
    ) -> tuple[Tensor, ...]:
        logits = scale * self.body(x)
        if labels is None:
            return (logits,)
        return torch.nn.functional.cross_entropy(logits, labels), logits


def test_what_the_example_had_and_a_call_has_not_is_named() -> None:
    model, x = Judged().eval(), images(3)
    given = {"labels": torch.arange(3), "scale": 2.0}
    fast = tome_fx.transform(model, 0, example_inputs=x, example_kwargs=given)
    assert same(fast(x, **given), model(x, **given))
    with pytest.raises(tome_fx.ShapeError, match=r"labels is left out, but .*again without"):
        fast(x, scale=2.0)
    with pytest.raises(tome_fx.ShapeError, match=r"labels is None, but .*again without"):
        fast(x, labels=None, scale=2.0)
    with pytest.raises(tome_fx.ShapeError, match=r"scale is left out, but the model was capt"):
        fast(x, labels=given["labels"])
    with pytest.raises(TypeError, match="required positional argument: 'x'"):
        fast(**given)
    again = copy.deepcopy(fast)
    assert same(again(x, **given), model(x, **given))


class Mode(str, Enum):
    ONCE, TWICE = "once", "twice"


class Asking(nn.Module):
    """What is asked of an optional input is whether it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        more: dict[str, Tensor] | None = None,
        mode: Mode = Mode.ONCE,
    ) -> Tensor:
        y = self.body(x) * (2 if mode is Mode.TWICE else 1)
        y = y if mask is None else y + 1.0
        return y if more is None else y + more["offset"]


def test_what_no_op_reads_must_be_there_too() -> None:
    model, x = Asking().eval(), images(3)
    given = {"mask": torch.ones(3, 9), "more": {"offset": torch.ones(3, 10)}}
    fast = tome_fx.transform(model, 0, example_inputs=x, example_kwargs=given)
    assert torch.equal(fast(x, **given), model(x, **given))
    for name in given:
        rest = {key: value for key, value in given.items() if key != name}
        for call in (rest, {**rest, name: None}):
            with pytest.raises(tome_fx.ShapeError, match=f"{name} is (left out|None), but"):
                fast(x, **call)
    plain = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(plain(x), model(x))
