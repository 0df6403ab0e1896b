"""Autocast in bfloat16, and in float16 with a scaler of gradients, around the train step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}


def half_step(
    program: nn.Module, x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    program.zero_grad()
    with torch.autocast("cpu", dtype):
        y = program(x)
        loss = y.float().tanh().sum()
    loss.backward()
    return y, {name: p.grad.clone() for name, p in program.named_parameters()}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("r", [0, 2])
def test_gradients_under_autocast(dtype: torch.dtype, r: int) -> None:
    """Not further from those of float64 than the model's own under the same autocast."""
    model, x = tiny(depth=3).train(), images(4)
    fast = tome_fx.transform(model, r)
    y, grads = half_step(fast, x, dtype)
    assert y.dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in grads.values())
    if r == 0:  # to the bit
        expected, plain = half_step(model, x, dtype)
        assert torch.equal(y, expected)
        assert all(torch.equal(grads[name], plain[name]) for name in grads)
        return
    fast.zero_grad()
    exact = fast(x)
    exact.tanh().sum().backward()
    whole = torch.cat([p.grad.flatten() for p in fast.parameters()])
    found = torch.cat([gradient.flatten() for gradient in grads.values()])
    assert (y.float() - exact).norm() < TOLERANCE[dtype] * exact.norm()
    assert (found - whole).norm() < 5 * TOLERANCE[dtype] * whole.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_training(dtype: torch.dtype) -> None:
    """A fixed batch is learned; with float16 the scaler finds its scale first."""
    model, x, labels = tiny().train(), images(8), torch.arange(8)
    fast = tome_fx.transform(model, 2)
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = nn.functional.cross_entropy(fast(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert all(loss == loss for loss in losses)
    assert losses[-1] < 0.5 * losses[0], losses
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_random_layers_drop_under_autocast_in_training_only() -> None:
    model = tiny(proj_drop_rate=0.3, drop_path_rate=0.3)
    fast, x = tome_fx.transform(model, 2), images(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), fast(x))
        fast.train()
        assert not torch.equal(fast(x), fast(x))
