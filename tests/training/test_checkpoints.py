"""Weights go both ways by name: from other training into the model, and from the result back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import tome_fx
from tests import oracle
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Written to a file and read again, as weights and nothing else."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.few(1)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "init_values": 0.5, "qk_norm": True}])
def test_round_trip(options: dict[str, Any], training: bool) -> None:
    model, x = tiny(**options), images(4).requires_grad_(False)
    fast = tome_fx.transform(model.train(training), 2)
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.train()
    optimizer = torch.optim.SGD(fast.parameters(), 0.1)
    fast(x).square().mean().backward()
    optimizer.step()
    weights = saved(fast.state_dict())
    fresh = tiny(**options)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(weights, strict=True)  # timm's own model, timm's own names
    y = fast.eval()(x)
    assert torch.equal(tome_fx.transform(fresh, 2)(x), y)
    other = tome_fx.transform(tiny(**options), 2)
    other.load_state_dict(saved(fresh.state_dict()), strict=True)
    assert torch.equal(other(x), y)
    assert not torch.equal(tome_fx.transform(tiny(**options), 2)(x), y)


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_weights_of_other_training_behave_as_they_were_trained(prop_attn: bool, pool: str) -> None:
    """An independent implementation, with and without proportional attention; MAE models pool."""
    options: dict[str, Any] = {"depth": 3, "global_pool": pool}
    trained = tiny(**options).double()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.2)
    weights, x = saved({"model": trained.state_dict()}), images(3).double()
    model = tiny(**options).double()
    model.load_state_dict(weights["model"])
    fast = tome_fx.transform(model, [2, 2, 1], prop_attn=prop_attn)
    torch.testing.assert_close(
        fast(x).detach(), oracle.reference(trained, x, [2, 2, 1], prop_attn), rtol=1e-9, atol=1e-9
    )
    wrong = oracle.reference(trained, x, [2, 2, 1], not prop_attn)
    assert not torch.allclose(fast(x), wrong, rtol=1e-4)


def test_the_page_says_what_mae_models_need() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "training.md"
    text = page.read_text(encoding="utf-8")
    assert "MAE" in text
    assert "`prop_attn=False`" in text
