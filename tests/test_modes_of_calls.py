"""Models whose code asks whether gradients are on: a program is of one answer, and says so."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, images, same, tiny
from tome_fx.errors import ModeError

pytestmark = TINY

Asks = Callable[[Tensor], bool]
Mode = Callable[[], AbstractContextManager[Any]]
GRAD, NO_GRAD, INFERENCE = torch.enable_grad, torch.no_grad, torch.inference_mode


def asking(asks: Asks, factor: float = 2.0) -> nn.Module:
    """A model that multiplies its result if what it asks is so."""

    def forward(body: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = body(x)
        return y * factor if asks(y) else y

    return Around(forward).eval()


def graded(y: Tensor) -> bool:
    return torch.is_grad_enabled()


def requiring(y: Tensor) -> bool:
    return y.requires_grad


def inferring(y: Tensor) -> bool:
    return torch.is_inference_mode_enabled()


def autocasting(y: Tensor) -> bool:
    return torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("asks", [graded, requiring])
@pytest.mark.parametrize("r", [0, 2])
def test_a_call_of_the_other_mode_is_refused(asks: Asks, r: int) -> None:
    model, x = asking(asks), images(3)
    fast = tome_fx.transform(model, r)
    assert same(tome_fx.transform(model, 0)(x), model(x))
    assert fast(x).shape == (3, 10)
    for mode in (NO_GRAD, INFERENCE):
        with mode(), pytest.raises(ModeError, match=r"test_modes_of_calls.*transform the model"):
            fast(x)
    assert "and refuses those" in str(fast.report)


@pytest.mark.parametrize("mode", [NO_GRAD, INFERENCE])
def test_the_program_is_of_the_mode_of_the_transform(mode: Mode) -> None:
    model, x = asking(graded), images(3)
    with mode():
        fast = tome_fx.transform(model, 0)
    for serving in (NO_GRAD, INFERENCE):
        with serving():
            assert same(fast(x), model(x))
    with pytest.raises(ModeError, match=r"transform the model again under torch.enable_grad"):
        fast(x)


def test_inference_mode_may_be_one_of_its_own() -> None:
    model, x = asking(inferring), images(3)
    fast = tome_fx.transform(model, 0)
    assert same(fast(x), model(x))
    with NO_GRAD():
        assert same(fast(x), model(x))
    with INFERENCE(), pytest.raises(ModeError, match="in inference mode"):
        fast(x)


@pytest.mark.parametrize("asks", [graded, requiring, inferring])
def test_asking_alone_is_no_reason(asks: Asks) -> None:
    fast = tome_fx.transform(asking(asks, factor=1.0), 2)
    x = images(3)
    expected = fast(x)
    for mode in (NO_GRAD, INFERENCE):
        with mode():
            assert torch.equal(fast(x), expected)
    assert "asks for" not in str(fast.report)


def test_autocast_is_named_in_the_report() -> None:
    report = tome_fx.explain(asking(autocasting), 2)
    assert "asks for autocast (test_modes_of_calls.py:" in str(report)


def test_each_program_has_its_mode() -> None:
    model, x = asking(graded), images(3)
    with NO_GRAD():
        fast = tome_fx.transform(model, 0)
    fast.train()
    assert same(fast(x), model.train()(x))
    with NO_GRAD():
        with pytest.raises(ModeError, match="with gradients"):
            fast(x)
        fast.eval()
        assert same(fast(x), model.eval()(x))


def test_what_is_asked_of_a_result_beside_calls() -> None:
    """Planning, maps, copies and pickles are no calls of the model."""
    fast, x = tome_fx.transform(asking(graded), 2), images(3)
    expected = fast(x)
    planned = tome_fx.transform(asking(graded), 2, batch=2, hardware="cpu", min_speedup=0.0)
    with NO_GRAD():
        planned.r = fast.r = 1
        planned.r = fast.r = 2
        other = copy.deepcopy(fast)
        assert fast.token_map(x).shape == (2, 3, 9)
    assert torch.equal(other(x), expected)
    with NO_GRAD(), pytest.raises(ModeError):
        other(x)


def test_compiled_programs_ask_too() -> None:
    fast, x = tome_fx.transform(asking(graded), 2), images(3)
    compiled = torch.compile(fast, backend="eager")
    assert torch.equal(compiled(x), fast(x))
    with NO_GRAD(), pytest.raises(Exception, match="asks for that"):
        compiled(x)


def test_what_asks_is_left_as_it_was() -> None:
    before = torch.is_grad_enabled, torch.is_autocast_enabled, torch.Tensor.requires_grad
    tome_fx.transform(asking(graded), 2)
    after = torch.is_grad_enabled, torch.is_autocast_enabled, torch.Tensor.requires_grad
    assert before == after


def test_models_that_do_not_ask_are_run_in_no_other_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from tome_fx.capturing.original import Original

    def refused(*args: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(Original, "run_in", refused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tome_fx.transform(tiny(), 2)


def test_code_that_was_typed_in_asks_too() -> None:
    made: dict[str, Any] = {"torch": torch}
    text = "def asks(y):\n    return torch.is_grad_enabled()\n"
    exec(compile(text, "<stdin>", "exec"), made)
    fast = tome_fx.transform(asking(made["asks"]), 2)
    with NO_GRAD(), pytest.raises(ModeError, match=r"<stdin>:2"):
        fast(images(2))


def test_a_model_that_counts_its_calls_is_of_no_mode() -> None:
    calls: list[bool] = []

    def forward(body: nn.Module, x: Tensor) -> Any:
        calls.append(torch.is_grad_enabled())
        return body(x) + float(len(calls) > 3)

    fast = tome_fx.transform(Around(forward).eval(), 2)
    assert calls[3:] == [False, True]
    assert "asks for" not in str(fast.report)


def test_a_mode_in_which_the_model_fails_is_none_of_its_own() -> None:
    def forward(body: nn.Module, x: Tensor) -> Any:
        if not torch.is_grad_enabled():
            raise RuntimeError("only with gradients")
        return body(x)

    fast = tome_fx.transform(Around(forward).eval(), 2)
    assert "asks for" not in str(fast.report)
    assert isinstance(pickle.loads(pickle.dumps(ModeError("text"))), ModeError)
