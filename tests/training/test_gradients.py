"""Gradients through a result are those of the paper's algorithm with its choices held fixed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests import oracle
from tests.laws.common import TINY
from tests.test_modes import Hybrid
from tests.tiny import images, tiny

pytestmark = TINY

MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no proportional attention": {"prop_attn": False},
    "mean pool": {"global_pool": "avg", "class_token": False},
    "layer scale, q/k-norm, registers": {"init_values": 0.5, "qk_norm": True, "reg_tokens": 2},
}


def slow(model: nn.Module, x: Tensor, schedule: list[int], prop_attn: bool) -> Tensor:
    """The reference of the tests, image by image, with gradients."""
    run = [oracle.Run(schedule, prop_attn, True) for _ in x]
    return torch.stack([oracle._forward(model, image, r) for image, r in zip(x, run, strict=True)])


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of a loss that weighs each logit by a number of its own, by parameter, and of the input."""
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    inputs = {"input": x, **dict(model.named_parameters())}
    found = torch.autograd.grad((y.tanh() * weight).sum(), list(inputs.values()))
    return dict(zip(inputs, found, strict=True))


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    # One that is zero but for rounding (a bias of all keys alike) is held to the largest.
    floor = 1e-6 * max(float(gradient.norm()) for gradient in theirs.values())
    for name, expected in theirs.items():
        error = float((ours[name] - expected).norm())
        assert error <= 1e-6 * max(float(expected.norm()), floor), (name, error)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_they_equal_the_reference(name: str, training: bool) -> None:
    options = dict(MODELS[name])
    prop_attn = options.pop("prop_attn", True)
    model = tiny(depth=3, **options).double().train(training)
    x = images(3).double().requires_grad_()
    schedule = [2, 2, 1]
    fast = tome_fx.transform(model, schedule, prop_attn=prop_attn)
    assert fast.schedule == (2, 2, 1)
    ours = gradients(fast, x, fast(x))
    theirs = gradients(model, x, slow(model, x, schedule, prop_attn))
    assert_close(ours, theirs)
    plain = gradients(model, x, model(x))
    moved = [n for n in plain if (plain[n] - ours[n]).norm() > 1e-3 * plain[n].norm()]
    assert len(moved) > len(plain) // 2  # merging is seen by the gradients


def test_sizes_matter_to_them() -> None:
    """The control: a reference that forgets the sizes has other gradients."""
    model, x = tiny(depth=3).double(), images(2).double().requires_grad_()
    fast = tome_fx.transform(model, [2, 2, 1])
    wrong = gradients(model, x, slow(model, x, [2, 2, 1], False))
    with pytest.raises(AssertionError):
        assert_close(gradients(fast, x, fast(x)), wrong)


def test_matching_carries_none() -> None:
    """Keys learn from attention alone: where nothing attends to them later, not at all."""
    model, x = tiny(depth=1).double(), images().double()
    fast = tome_fx.transform(model, 2)
    assert not any(n.name.startswith("match") and n.args[0].name == "key" for n in fast.graph.nodes)
    metric = next(n for n in fast.graph.nodes if n.name.startswith("head_mean"))
    values: list[Tensor] = []
    interpreter = torch.fx.Interpreter(fast, garbage_collect_values=False)
    interpreter.run(x)
    values.append(interpreter.env[metric])
    values.append(interpreter.env[next(iter(metric.users))])
    assert not any(value.requires_grad for value in values)


def test_gradcheck() -> None:
    """Numerically, first and second derivatives, wherever no choice is near its border."""
    model = tiny(embed_dim=8, num_heads=2, img_size=12, patch_size=4).double()
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused kernel has no second derivative on a CPU
    fast = tome_fx.transform(model, 2)
    x = images(1, size=12).double().requires_grad_()
    assert torch.autograd.gradcheck(fast, x, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(fast, x, atol=1e-5, fast_mode=True)


def test_steps_of_an_optimizer_train_the_model_itself() -> None:
    model, x = tiny().double().train(), images(4).double()
    reference = copy.deepcopy(model)
    fast = tome_fx.transform(model, 2)
    for module, program in ((model, fast), (reference, None)):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            y = program(x) if program else slow(reference, x, [2, 2], True)
            nn.functional.cross_entropy(y, torch.arange(4)).backward()
            optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=name)
    assert torch.equal(fast.eval()(x), tome_fx.transform(model.eval(), 2)(x))


def test_frozen_parameters_stay_frozen() -> None:
    model, x = tiny().train(), images()
    for parameter in model.blocks.parameters():
        parameter.requires_grad_(False)
    fast = tome_fx.transform(model, 2)
    fast(x).sum().backward()
    for name, parameter in fast.named_parameters():
        assert (parameter.grad is None) == name.startswith("blocks."), name
    model.blocks[0].requires_grad_(True)  # unfrozen later: the parameters are shared
    fast(x).sum().backward()
    assert all(p.grad is not None for p in model.blocks[0].parameters())


@pytest.mark.few(1)
@pytest.mark.parametrize("capture", ["export", "symbolic_trace"])
def test_through_a_batch_norm(capture: str) -> None:
    """It writes to its running statistics, which its backward reads."""
    model, x = Hybrid().train(), images(4).requires_grad_()
    twin = copy.deepcopy(model)
    for _ in range(2):
        fast = tome_fx.transform(model, 0, example_inputs=x, capture=capture)
        ours, theirs = gradients(fast, x, fast(x)), gradients(twin, x, twin(x))
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    merged = tome_fx.transform(model, 2, example_inputs=x, capture=capture)
    merged(x).sum().backward()
    assert float(model.stem[0].weight.grad.abs().sum()) > 0
