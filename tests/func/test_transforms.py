"""`torch.func` through a result: what it gives for the model, it gives for the program."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = [
    TINY,
    # vmap says so of fused attention, of the model as of the result.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    # torch's own forward derivatives are made so.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning"),
]
R = 2


def double(**options: Any) -> nn.Module:
    return tiny(**options).double()


def state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    return parameters, dict(module.named_buffers())


def loss_of(program: nn.Module) -> Any:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(program, parameters, (x,)).square().mean()

    return loss


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_functional_call() -> None:
    model, other, x = double(), double(), images().double()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    fast, parameters = tome_fx.transform(model, R), state(other)
    ours = functional_call(fast, parameters, (x,))
    assert torch.equal(ours, tome_fx.transform(other, R)(x))
    assert not torch.equal(ours, fast(x))
    part = {"head.bias": torch.ones(10, dtype=torch.float64)}
    close(functional_call(fast, part, (x,)) - fast(x), (1 - fast.head.bias).expand(2, -1))


@pytest.mark.few(1)
@pytest.mark.parametrize("training", [False, True])
def test_an_ensemble(training: bool) -> None:
    """The states of plain models, stacked; one program runs them all."""
    models = [copy.deepcopy(double()).train(training) for _ in range(3)]
    for i, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data.mul_(1 + 0.1 * i)
    fast, x = tome_fx.transform(models[0], R), images(4).double()
    parameters, buffers = stack_module_state(models)
    call = vmap(lambda p, b, x: functional_call(fast, (p, b), (x,)), in_dims=(0, 0, None))
    close(call(parameters, buffers, x),
          torch.stack([tome_fx.transform(model, R)(x) for model in models]))  # fmt: skip
    each = vmap(lambda p, b, x: functional_call(fast, (p, b), (x,)))
    batches = torch.stack([images(2, seed=i).double() for i in range(3)])
    close(each(parameters, buffers, batches),
          torch.stack([tome_fx.transform(m, R)(b)
                       for m, b in zip(models, batches, strict=True)]))  # fmt: skip


def test_grad_and_vjp() -> None:
    fast, x = tome_fx.transform(double(), R), images(4).double()
    parameters, _ = state(fast)
    found = grad(loss_of(fast))(parameters, x)
    fast(x).square().mean().backward()
    for name, parameter in fast.named_parameters():
        close(found[name], parameter.grad)
    value, pull = vjp(loss_of(fast), parameters, x)
    close(pull(torch.ones_like(value))[0], found)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_each_image(training: bool) -> None:
    fast, x = tome_fx.transform(double().train(training), R), images(4).double()
    parameters, _ = state(fast)
    loss = loss_of(fast)
    each = vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, x)
    for i in range(4):
        one = grad(loss)(parameters, x[i : i + 1])
        close({name: value[i] for name, value in each.items()}, one)


def test_dropout_of_each_image() -> None:
    rates = {"drop_rate": 0.2, "proj_drop_rate": 0.2, "drop_path_rate": 0.3}
    fast, x = (
        tome_fx.transform(double(**rates).train(), R),
        images(1).double().expand(8, -1, -1, -1),
    )
    parameters, _ = state(fast)
    loss = loss_of(fast)
    per_image = vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0), randomness="different")
    found = per_image(parameters, x)["norm.weight"]
    assert len(found.unique(dim=0)) > 1
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, x)


def test_jvp() -> None:
    """Forward derivatives need the plain kernel of attention, as the model does."""
    fast, x = tome_fx.transform(double(), R), images().double()
    along = images(seed=1).double()
    with sdpa_kernel(SDPBackend.MATH):
        value, forward = jvp(fast, (x,), (along,))
        close(value, fast(x))
        close(forward, torch.einsum("boBchw,Bchw->bo", jacrev(fast)(x), along))
        step = 1e-6
        numeric = (fast(x + step * along) - fast(x - step * along)) / (2 * step)
        torch.testing.assert_close(forward, numeric, rtol=1e-5, atol=1e-6)


def test_hessian() -> None:
    fast, x = tome_fx.transform(double(), R), images().double()

    def loss(bias: Tensor) -> Tensor:
        return functional_call(fast, {"head.bias": bias}, (x,)).square().sum()

    close(hessian(loss)(fast.head.bias.detach()), 4 * torch.eye(10, dtype=torch.float64))


def test_vmap_over_images_of_one() -> None:
    fast, x = tome_fx.transform(double(), R), images(3).double()
    close(vmap(lambda x: fast(x[None])[0])(x), fast(x))
    close(functionalize(fast)(x), fast(x))


@pytest.mark.few(2)
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx(tracing: str) -> None:
    fast, x = tome_fx.transform(double(), R), images().double()
    traced = make_fx(fast, tracing_mode=tracing, _allow_non_fake_inputs=True)(x)
    other = images(seed=2).double()
    close(traced(other), fast(other))
    if tracing == "symbolic":
        many = images(5).double()
        close(traced(many), fast(many))


def test_make_fx_of_gradients() -> None:
    fast, x = tome_fx.transform(double(), R), images().double()
    parameters, _ = state(fast)
    traced = make_fx(grad(loss_of(fast)))(parameters, x)
    close(traced(parameters, x), grad(loss_of(fast))(parameters, x))
