"""Example inputs that are taken from a call of what the model is a part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.test_wholes import llava, prompts
from tests.tiny import images, tiny
from tome_fx.capturing.first_call import first_call

pytestmark = TINY


class Whole(nn.Module):
    """A tower that is called twice, by name, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = tiny()
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        near = self.tower(x=x)
        return self.head(near + self.tower(x=-x))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        return self.tower.forward_features(x)  # type: ignore[operator,no-any-return]


@pytest.fixture
def whole() -> Whole:
    return Whole().eval()


def test_the_inputs_are_those_of_the_first_call(whole: Whole) -> None:
    x, rows = images(3), torch.get_rng_state()
    fast = tome_fx.transform(whole.tower, 2, example_call=lambda: whole(x))
    by_name = tome_fx.transform(whole.tower, 2, example_kwargs={"x": x})
    assert torch.equal(fast(x=images(5)), by_name(x=images(5)))
    assert str(fast.graph) == str(by_name.graph)
    whole.tower = fast
    assert whole(images(4)).shape == (4, 3)
    assert torch.equal(torch.get_rng_state(), rows)


def test_only_the_first_call_is_looked_at_and_copied(whole: Whole) -> None:
    x, seen = images(3), []

    def call() -> None:
        seen.append(torch.is_grad_enabled())
        given = x.clone().requires_grad_()
        whole.tower(given)
        given.detach().zero_()
        whole.tower(x=-x)

    handle = whole.tower.register_forward_pre_hook(lambda _, given: tuple(one * 2 for one in given))
    args, kwargs = first_call(whole.tower, call)
    handle.remove()
    assert torch.equal(args[0], x), "in front of the hook, before it was written to"
    assert not args[0].requires_grad
    assert kwargs == {}
    assert seen == [False]


def test_what_no_other_call_can_repeat(whole: Whole) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.tower = nn.Conv2d(3, 3, 1), tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.tower(self.stem(x))  # type: ignore[no-any-return]

    def half(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(images())  # type: ignore[no-any-return]

    stem = Stem().eval()
    with pytest.raises(tome_fx.InputError, match=r"within autocast.* torch.bfloat16; its weights"):
        tome_fx.transform(stem.tower, 2, example_call=lambda: half(stem))
    fast = tome_fx.transform(whole.tower, 2, example_call=lambda: half(whole))
    assert fast(x=images()).dtype == torch.float32

    def mapped() -> Tensor:
        return torch.vmap(whole.tower)(images()[:, None])  # type: ignore[no-any-return]

    with pytest.raises(tome_fx.InputError, match=r"under a transform of torch\.func"):
        tome_fx.transform(whole.tower, 2, example_call=mapped)


def test_the_model_is_as_it_was(whole: Whole) -> None:
    hooks = {name: len(part._forward_pre_hooks) for name, part in whole.named_modules()}
    tome_fx.transform(whole.tower, 2, example_call=lambda: whole(images()))
    assert {n: len(part._forward_pre_hooks) for n, part in whole.named_modules()} == hooks
    assert not whole.tower._forward_pre_hooks_with_kwargs
    with pytest.raises(tome_fx.InputError, match="does not call this VisionTransformer"):
        tome_fx.transform(whole.tower, 2, example_call=lambda: whole.features(images()))
    assert not whole.tower._forward_pre_hooks


def test_what_the_call_does_with_its_inputs_later_is_nothing_to_them(whole: Whole) -> None:
    """The example is checked by its values, and may come from where no gradient is known."""

    def call() -> None:
        with torch.inference_mode():
            x = images()
            whole(x)
            x.fill_(float("nan"))

    fast = tome_fx.transform(whole.tower.train(), 2, example_call=call)
    assert fast(x=images()).requires_grad


def test_a_compiled_whole_is_called_as_it_is_written(whole: Whole) -> None:
    def refuse(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        raise AssertionError("nothing is compiled for an example")

    compiled = torch.compile(whole, backend=refuse)
    fast = tome_fx.transform(whole.tower, 2, example_call=lambda: compiled(images()))
    assert fast.schedule == (2, 2)


def test_a_wrapped_part_is_seen_too(whole: Whole) -> None:
    whole.tower = torch.compile(whole.tower, backend="eager")  # type: ignore[assignment]
    fast = tome_fx.transform(whole.tower, 2, example_call=lambda: whole(images()))
    assert fast(x=images()).shape == (2, 10)


def test_explain_takes_it_too(whole: Whole) -> None:
    report = tome_fx.explain(whole.tower, 2, example_call=lambda: whole(images()))
    assert report.schedule == (2, 2)


@torch.no_grad()
def test_arguments_that_change_the_result_come_with_it() -> None:
    """The whole asks for hidden states, which a tower that was captured without cannot give."""
    pytest.importorskip("transformers")
    whole = llava()
    asked = prompts(2)
    tower = whole.model.vision_tower
    fast = tome_fx.transform(tower, 0, example_call=lambda: whole(**asked))
    wanted = whole(**asked).logits
    whole.model.vision_tower = fast
    assert torch.equal(whole(**asked).logits, wanted)
    fast.r = 2
    assert not torch.equal(whole(**asked).logits, wanted)


def test_what_is_no_call(whole: Whole) -> None:
    x = images()
    with pytest.raises(
        tome_fx.InputError, match=r"example_call fails: RuntimeError: no\. It takes"
    ):
        tome_fx.transform(whole.tower, 2, example_call=lambda: _raise(RuntimeError("no\nwhy")))
    with pytest.raises(tome_fx.InputError, match="does not call this VisionTransformer"):
        tome_fx.transform(whole.tower, 2, example_call=lambda: None)
    with pytest.raises(tome_fx.InputError, match=r"TypeError: .*positional argument"):
        tome_fx.transform(whole.tower, 2, example_call=whole)  # type: ignore[arg-type]
    with pytest.raises(tome_fx.ConfigError, match=r"example_call=3 is no function"):
        tome_fx.transform(whole.tower, 2, example_call=3)  # type: ignore[arg-type]
    with pytest.raises(tome_fx.ConfigError, match="leave out example_inputs and example_kwargs"):
        tome_fx.transform(whole.tower, 2, example_inputs=x, example_call=lambda: whole(x))
    program = torch.export.export(whole.tower, (x,))
    with pytest.raises(tome_fx.ConfigError, match=r"leave out .* example_call"):
        tome_fx.transform(program, 2, example_call=lambda: whole(x))


def _raise(error: Exception) -> None:
    raise error


def test_without_inputs_the_error_names_it() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)  # type: ignore[no-any-return]

    with pytest.raises(tome_fx.InputError, match=r"part of a larger model, example_call="):
        tome_fx.transform(Bare().eval())


class Stripped(nn.Module):
    """Padding goes out of the result, and a number is read in front, around a tower."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.tower, self.reads = tiny(), reads

    def forward(self, x: Tensor) -> Tensor:
        if self.reads:
            found = self.tower(x * x.argmax().item())
            return found.softmax(-1)  # type: ignore[no-any-return]
        found = self.tower(x)
        return found[found > 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("reads", [True, False])
def test_a_whole_that_cannot_merge_names_the_part_that_could(reads: bool) -> None:
    whole = Stripped(reads).eval()
    said = r"All attention is in tower: transform that by itself, with example_call=lambda"
    with pytest.raises(tome_fx.CaptureError, match=said):
        tome_fx.transform(whole, 2, example_inputs=images())
    fast = tome_fx.transform(whole.tower, 2, example_call=lambda: whole(images()))
    assert fast.schedule == (2, 2)


def test_a_softmax_that_is_no_attention_is_no_part_to_transform() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Softmax(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(x * x.max().item())  # type: ignore[no-any-return]

    with pytest.raises(tome_fx.CaptureError, match="reads a number out of a tensor") as caught:
        tome_fx.transform(Gate().eval(), 2, example_inputs=images())
    assert "All attention" not in str(caught.value)
