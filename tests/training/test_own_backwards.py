"""A backward of a model's own: kept in training, told of in evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

import tome_fx
from tests.laws.common import TINY
from tests.test_regions import gradients
from tests.tiny import Around, images, tiny

pytestmark = TINY


class Round(Function):
    """A straight-through estimator: its gradient passes what the rounding would stop."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: float) -> Tensor:
        return (x * steps).round() / steps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Reverse(Function):
    """Gradient reversal, by `setup_context`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Noise(Function):
    """Drawn numbers that are added in place, and a gradient that is scaled by them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        drawn = torch.rand_like(x)
        ctx.save_for_backward(drawn)
        ctx.mark_dirty(x)
        return x.add_(drawn)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0]


class Saturated(Function):
    """Where nothing is cut off its gradient is the plain one; its steps may be given by name."""

    @staticmethod
    def forward(x: Tensor, steps: float = 1.0) -> Tensor:
        return (x * steps).clamp(-1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.steps = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.steps, None


class Outer(Function):
    """A function that calls another in its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Swish(Function):
    """Written to save memory: its gradient is that of what it computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grads[0] * (s + x * s * (1 - s))


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def rounded(x: Tensor) -> Tensor:
    return Round.apply(x, 8.0)  # type: ignore[no-any-return, no-untyped-call]


def rounded_within_an_op_first(x: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        rounded(x)
    return rounded(x)


def saturated_later(x: Tensor) -> Tensor:
    small = Saturated.apply(x.tanh() * 0.5)  # type: ignore[no-untyped-call]
    return small + Saturated.apply(3 * x)  # type: ignore[no-any-return, no-untyped-call]


def saturated_by_name(x: Tensor) -> Tensor:
    return Saturated.apply(x, steps=8.0)  # type: ignore[no-any-return, no-untyped-call]


def nested(x: Tensor) -> Tensor:
    return Outer.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def reversed_(x: Tensor) -> Tensor:
    return Reverse.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def noisy(x: Tensor) -> Tensor:
    return Noise.apply(x * 1)  # type: ignore[no-any-return, no-untyped-call]


def swish(x: Tensor) -> Tensor:
    return Swish.apply(x)  # type: ignore[no-any-return, no-untyped-call]


PLACES = {"the tokens": "norm_pre", "the head": "fc_norm", "an MLP": "blocks.1.mlp.act"}


def with_calls(function: Callable[[Tensor], Tensor], place: str) -> nn.Module:
    model = tiny(drop_rate=0.0)
    model.set_submodule(PLACES[place], Calls(function))
    return model


def watched(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda grad: grad * 2)
    return x


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("function", "place"),
    [
        (rounded, "the tokens"),
        (reversed_, "the head"),
        (rounded, "an MLP"),
        (rounded_within_an_op_first, "an MLP"),
        (saturated_later, "an MLP"),
        (saturated_by_name, "the head"),
        (nested, "an MLP"),
    ],
)
def test_training_keeps_its_gradients(function: Callable[[Tensor], Tensor], place: str) -> None:
    model, x = with_calls(function, place).train(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert PLACES[place] in str(fast.report)
    assert torch.equal(fast(x), model(x))
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert torch.count_nonzero(theirs["patch_embed.proj.weight"])
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=0)


def test_merged_tokens_have_its_gradient_as_well() -> None:
    model, x = with_calls(reversed_, "the head").train(), images()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert fast.schedule == (2, 2)
    there = gradients(fast, x)
    model.set_submodule(PLACES["the head"], nn.Identity())
    plain = gradients(tome_fx.transform(model, 2, example_inputs=x), x)
    assert torch.equal(there["patch_embed.proj.weight"], -plain["patch_embed.proj.weight"])


@pytest.mark.few(2)
@pytest.mark.parametrize("function", [rounded, reversed_, noisy])
def test_evaluation_tells_of_it(function: Callable[[Tensor], Tensor]) -> None:
    model, x = with_calls(function, "the head"), images()
    state = torch.get_rng_state()
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    note = next(note for note in fast.report.notes if "gradients through" in note)
    assert "in fc_norm" in note
    assert fast.schedule == (2, 2)
    assert PLACES["the head"] not in fast.train().report.notes


def test_the_gradient_of_its_forward_needs_no_word() -> None:
    model, x = with_calls(swish, "an MLP").train(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert not fast.report.notes
    for name, gradient in gradients(model, x).items():
        torch.testing.assert_close(gradients(fast, x)[name], gradient)


def test_the_model_itself_cannot_be_a_call() -> None:
    model, x = Around(lambda body, x: body(rounded(x))).train(), images()
    with pytest.raises(tome_fx.CaptureError, match=r"gradient of Round .*detach\(\)") as raised:
        tome_fx.transform(model, 2, example_inputs=x)
    assert "check=False" in str(raised.value)
    assert tome_fx.transform(model, 2, example_inputs=x, check=False).schedule == (2, 2)
    fast = tome_fx.transform(model.eval(), 2, example_inputs=x)
    assert "in the model itself" in str(fast.report)
    with pytest.raises(tome_fx.CaptureError, match="gradient of Round"):
        fast.train()


def test_a_module_around_all_attention_names_the_way_out() -> None:
    def blocks(body: nn.Module, x: Tensor) -> Tensor:
        return body.blocks(body.patch_embed(rounded(x)))  # type: ignore[operator]

    model, x = nn.Sequential(Around(blocks)).train(), images()
    with pytest.raises(tome_fx.CaptureError, match=r"No attention is found around it.*detach\(\)"):
        tome_fx.transform(model, 2, example_inputs=x)


ALIAS = Round.apply


def test_a_name_that_was_kept_of_it_is_warned_of() -> None:
    """Nothing sees such a call; the gradients that it leaves behind tell of it."""
    model, x = with_calls(lambda x: ALIAS(x, 8.0), "an MLP").train(), images()  # type: ignore[no-untyped-call, no-any-return]
    with pytest.warns(tome_fx.ToMeWarning, match=r"gradient of Round is not .* Round\.apply\(x\)"):
        tome_fx.transform(model, 2, example_inputs=x)


def test_hooks_on_values_are_warned_of() -> None:
    model, x = with_calls(watched, "an MLP"), images()
    with pytest.warns(tome_fx.ToMeWarning, match=r"register_hook\) in blocks.1.mlp.act are not"):
        tome_fx.transform(model, 2, example_inputs=x)
    model.set_submodule(PLACES["an MLP"], nn.GELU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tome_fx.transform(model, 2, example_inputs=x)
