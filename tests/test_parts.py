"""What is done to a result, or to a part of it: it has its effect, or is refused or warned of.

The parts of a result hold weights and are not called; a model's are.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import tome_fx
from tests.laws.common import TINY, distance
from tests.tiny import images, seeded, tiny

pytestmark = TINY

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}
copied = pytest.mark.parametrize("copier", COPIES.values(), ids=COPIES)


def wrapped(module: nn.Module) -> Callable[..., Any]:
    """As accelerate wraps ``forward`` for mixed precision."""
    module.forward = MethodType(torch.no_grad()(module.forward.__func__), module)  # type: ignore[method-assign,attr-defined]
    return module.forward


# --- its forward ---------------------------------------------------------------------------------


def test_whoever_wrapped_forward_runs_the_program_of_now() -> None:
    fast, x = tome_fx.transform(tiny(proj_drop_rate=0.5).train(), 2), images(3)
    wrapped(fast)
    assert not torch.equal(fast(x), fast(x))
    fast.eval()
    assert torch.equal(fast(x), fast(x))
    fast.r = 5
    assert torch.equal(fast(x), tome_fx.transform(tiny(proj_drop_rate=0.5), 5)(x))


def test_a_method_that_was_kept_runs_the_program_of_now() -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    kept, before = fast.forward, fast(x)
    fast.r = 5
    assert torch.equal(kept(x), fast(x))
    assert not torch.equal(kept(x), before)


# --- parts that are replaced ---------------------------------------------------------------------


class Lora(nn.Module):
    """As peft's: it says the weights of what it is around."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.more(x)  # type: ignore[no-any-return]


@pytest.mark.few(1)
@copied
def test_a_copy_of_a_wrapped_one_runs_its_own_program(copier: Callable[[Any], Any]) -> None:
    fast, x = tome_fx.transform(tiny(proj_drop_rate=0.5).train(), 2), images(3)
    before = wrapped(fast)
    other = copier(fast).eval()
    assert fast.forward is before
    assert torch.equal(other(x), other(x))
    other.r = 5
    assert torch.equal(other(x), tome_fx.transform(tiny(proj_drop_rate=0.5), 5)(x))


def test_a_module_in_the_place_of_a_part() -> None:
    fast = tome_fx.transform(tiny(), 2)
    attention = fast.get_submodule("blocks.0.attn")
    with pytest.raises(tome_fx.ConfigError, match=r"Lora cannot take the place of qkv.*Change the"):
        attention.qkv = Lora(attention.qkv)
    with pytest.raises(tome_fx.ConfigError, match="Linear cannot take the place of head"):
        fast.head = nn.Linear(fast.head.in_features, 4)
    fast.adapter = nn.Linear(3, 3)  # nothing of the model's stands there


def test_before_the_transform_it_is_computed() -> None:
    model, x = tiny(), images(3)
    before = tome_fx.transform(model, 2)(x)
    model.blocks[0].attn.qkv = Lora(model.blocks[0].attn.qkv)
    fast = tome_fx.transform(model, 2)
    after = fast(x)
    after.sum().backward()
    assert distance(after.detach(), before.detach()) > 1e-3
    assert fast.get_parameter("blocks.0.attn.qkv.more.weight").grad is not None


def test_weights_that_a_hook_would_make_anew() -> None:
    fast = tome_fx.transform(tiny(), 2)
    with pytest.raises(tome_fx.ConfigError, match="weight is no parameter any more, and a hook"):
        prune.l1_unstructured(fast.head, "weight", 0.5)
    assert isinstance(fast.head.weight, nn.Parameter)
    fast = tome_fx.transform(tiny(), 2)
    deprecated = pytest.warns(FutureWarning, match="deprecated")
    with deprecated, pytest.raises(tome_fx.ConfigError, match="do it to the model, then transform"):
        nn.utils.weight_norm(fast.head)


@pytest.mark.few(1)
@copied
def test_a_parametrization_of_a_part(copier: Callable[[Any], Any]) -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    before = fast(x)
    parametrizations.weight_norm(fast.head)
    assert distance(fast(x).detach(), before.detach()) < 1e-5
    fast.head.parametrizations.weight.original0.data.mul_(2)
    assert distance(fast(x).detach(), before.detach()) > 1e-3
    fast.train().eval()
    assert distance(fast(x).detach(), before.detach()) > 1e-3
    with pytest.raises(tome_fx.ConfigError, match=r"head\.weight is no parameter.*Put that on the"):
        copier(fast)


def test_a_weight_of_another_shape() -> None:
    fast, x = tome_fx.transform(tiny(), 2), images(3)
    fast.head.weight = nn.Parameter(torch.zeros(4, fast.head.in_features))
    fast.head.bias = nn.Parameter(torch.zeros(4))
    assert fast(x).shape == (3, 4)
    with pytest.raises(tome_fx.ConfigError, match=r"head\.weight has the shape \(4, .*Change the"):
        fast.train()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
     "register_full_backward_pre_hook"],
)  # fmt: skip
def test_a_hook_on_a_part(register: str) -> None:
    fast = tome_fx.transform(tiny(), 2)
    with pytest.warns(tome_fx.ToMeWarning, match="A hook on a part .* never runs") as found:
        getattr(fast.head, register)(lambda *args: None)
    assert found[0].filename == __file__


# --- modes of parts ------------------------------------------------------------------------------


def test_the_mode_of_a_part_says_nothing() -> None:
    fast = tome_fx.transform(tiny(proj_drop_rate=0.5).train(), 2)
    with pytest.warns(tome_fx.ToMeWarning, match=r"eval\(\) of a part") as found:
        fast.blocks.eval()
    assert found[0].filename == __file__
    assert fast.blocks.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.blocks.train()
        fast.eval().train()
        nn.Sequential(fast).eval()
    assert not any(module.training for module in fast.modules())


COURSES: dict[str, Callable[[Any], Any]] = {
    "back": lambda fast: fast.eval().train(),
    "again": lambda fast: fast.train(),
    "copy": lambda fast: copy.deepcopy(fast.eval()).train(),
    "cast": lambda fast: fast.eval().double().float().train(),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
def test_what_was_frozen_at_the_transform_thaws_as_a_models_does(
    course: Callable[[Any], Any],
) -> None:
    model, x = tiny(proj_drop_rate=0.5).train(), images(3)
    model.blocks.eval()
    fast = tome_fx.transform(model, 2)
    assert torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
    assert fast.training
    assert not fast.blocks.training
    assert torch.equal(seeded(copy.deepcopy(fast), x, seed=1), seeded(fast, x, seed=2))
    fast = course(fast)
    assert not torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
    assert all(module.training for module in fast.modules())


class Freezing(nn.Module):
    """A model that keeps a part of it as it is, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny(proj_drop_rate=0.5)

    def train(self, mode: bool = True) -> Freezing:
        super().train(mode)
        self.model.blocks.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]


def test_a_model_that_freezes_itself_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(3)
    fast = tome_fx.transform(Freezing().train(), 2, example_inputs=x)
    fast.eval().train()
    assert torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
    assert fast.model.training
    assert not fast.model.blocks.training
    monkeypatch.setattr("tome_fx.module.locate_program", None)
    fast.eval().train().train()  # each mode is captured once


class Unwilling(nn.Module):
    """It cannot be captured in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny(proj_drop_rate=0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and bool(x.sum() > 0):
            raise RuntimeError("not while it trains")
        return self.body(x)  # type: ignore[no-any-return]


def test_a_mode_that_is_refused_changes_nothing() -> None:
    model, x = Unwilling().eval(), images(3)
    model.body.train()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    with pytest.raises(tome_fx.ToMeError):
        fast.train()
    for _ in range(2):
        assert not fast.training
        assert fast.body.training
        assert not torch.equal(seeded(fast, x, seed=1), seeded(fast, x, seed=2))
        fast.r = 3
