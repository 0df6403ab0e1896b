"""What flows back where a model switches gradients off and writes in place as well."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tome_fx
from tests.laws.common import TINY
from tests.test_regions import after_stem, gradients
from tests.tiny import Around, images, tiny
from tests.versions import OLD

pytestmark = TINY


def stopped(body: nn.Module, x: Tensor) -> Tensor:
    """A target without gradients beside a count of calls."""
    body.calls.add_(1)  # type: ignore[operator]
    patches = body.patch_embed(x)
    with torch.no_grad():
        target = patches.mean(1, keepdim=True)
    return after_stem(body, patches - target)


def counted_and_handed_on(body: nn.Module, x: Tensor) -> Tensor:
    """A cast that does nothing is the value itself, which keeps its gradient outside."""
    body.calls.add_(1)  # type: ignore[operator]
    patches = body.patch_embed(x)
    with torch.no_grad():
        target = patches.float().mean(1, keepdim=True)
    return after_stem(body, patches - target)


def frozen_and_cleared(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        patches = body.patch_embed(x)
    patches[:, 3] = 0
    return after_stem(body, patches)


def averaged(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    with torch.no_grad():
        body.average.mul_(0.9).add_(patches.mean((0, 1)), alpha=0.1)  # type: ignore[operator]
    return after_stem(body, patches - body.average)


def copied(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    with torch.no_grad():
        body.average.copy_(patches.mean((0, 1)))  # type: ignore[operator]
    return after_stem(body, patches * (1 + body.average))


def inferred(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    with torch.inference_mode():
        target = patches.mean(1, keepdim=True)
    return after_stem(body, patches - target.clone())


def inferred_in_function(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    return after_stem(body, patches - mean_of(patches).clone())


@torch.inference_mode()
def mean_of(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def model_of(name: str) -> nn.Module:
    body = tiny()
    width = body.pos_embed.shape[-1]  # type: ignore[union-attr, index]
    body.register_buffer("calls", torch.zeros(()))
    body.register_buffer("average", torch.zeros(width))
    if name == "spectral":
        return parametrize(Around(lambda body, x: body(x), body))
    return Around(globals()[name], body)


def parametrize(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            parametrizations.spectral_norm(module)
    return model


NAMES = ("stopped", "counted_and_handed_on", "frozen_and_cleared", "averaged", "copied", "inferred",
         "inferred_in_function", "spectral")  # fmt: skip


@pytest.mark.few(2)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_model_s(name: str, train: bool) -> None:
    model, x = model_of(name).train(train), images()
    twin = copy.deepcopy(model)
    fast = tome_fx.transform(model, 0, example_inputs=x)
    for _ in range(2):
        theirs, ours = gradients(twin, x), gradients(fast, x)
        assert [g is None for g in ours.values()] == [g is None for g in theirs.values()]
        assert any(g is not None for g in ours.values())
        for key, gradient in theirs.items():
            if gradient is not None:
                torch.testing.assert_close(ours[key], gradient, rtol=1e-5, atol=1e-6)
    held = dict(fast.named_buffers())
    assert OLD or held.keys() == dict(twin.named_buffers()).keys()  # OLD has constants among them
    assert not any(buffer.requires_grad for buffer in held.values())
    for key, buffer in twin.named_buffers():
        torch.testing.assert_close(held[key], buffer)
    copy.deepcopy(model)


def followed(body: nn.Module, x: Tensor) -> Tensor:
    """A frozen teacher that follows its student in training."""
    patches = body.patch_embed(x)
    with torch.no_grad():
        if body.training:
            body.teacher.weight.mul_(0.9).add_(body.student.weight, alpha=0.1)
        target = body.teacher(patches)
    return after_stem(body, body.student(patches) - target)


@pytest.mark.parametrize("check", [True, False])
def test_transform_leaves_weights_that_forward_writes_to(check: bool) -> None:
    body = tiny()
    width = body.pos_embed.shape[-1]  # type: ignore[union-attr, index]
    body.student, body.teacher = nn.Linear(width, width), nn.Linear(width, width)
    body.teacher.requires_grad_(False)
    model, x = Around(followed, body).train(), images()
    twin = copy.deepcopy(model)
    fast = tome_fx.transform(model, 0, example_inputs=x, check=check)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(fast(x), twin(x))
    for ours, theirs in zip(fast.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_program_that_was_exported_stays_as_it_is() -> None:
    model, x = model_of("averaged").train(), images()
    exported = torch.export.export(model, (x,))
    before = str(exported.graph_module.print_readable(print_output=False))
    tome_fx.transform(exported, 2)
    assert exported.graph_module.print_readable(print_output=False) == before


def test_other_threads_keep_their_inference_mode() -> None:
    inside, done = threading.Event(), threading.Event()
    seen: list[bool] = []

    def serve() -> None:
        with torch.inference_mode():
            inside.set()
            done.wait(60)
            seen.append(torch.ones(1).is_inference())
        seen.append(torch.is_inference_mode_enabled())

    thread = threading.Thread(target=serve)
    thread.start()
    inside.wait(60)
    during: list[bool] = []

    def forward(body: nn.Module, x: Tensor) -> Tensor:
        done.set()
        thread.join(60)
        during.append(torch.is_inference_mode_enabled())
        return inferred(body, x)

    tome_fx.transform(Around(forward, tiny()), 2, example_inputs=images())
    assert seen == [True, False]
    *during, asked = during  # its code asks for that mode, so it is run in it too, behind all else
    assert not any(during)
    assert asked


def shared_data(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    return after_stem(body, patches - patches.data.mean(1, keepdim=True))


def test_data_of_a_traced_value_has_its_values_and_no_gradient() -> None:
    model, x = Around(shared_data, tiny()).eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(fast(x), model(x))
    theirs, ours = gradients(model, x), gradients(fast, x)
    for name, gradient in theirs.items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6)
    assert "data" not in vars(torch.Tensor), "only while a model is captured"
