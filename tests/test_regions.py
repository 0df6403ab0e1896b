"""Regions of forward under another mode: no_grad, enable_grad, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Around, Cast, images, tiny
from tests.versions import lacks

pytestmark = TINY


def frozen_stem(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        patches = body.patch_embed(x)
    return after_stem(body, patches)


def centred(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    with torch.no_grad():
        mean = patches.mean(1, keepdim=True)
        with torch.enable_grad():
            mean = mean * 2
    return after_stem(body, patches - mean)


def nested(body: nn.Module, x: Tensor) -> Tensor:
    """Of what a region without gradients holds, one that has them again keeps its own."""
    patches = body.patch_embed(x)
    with torch.no_grad():
        mean = patches.mean(1, keepdim=True)
        with torch.enable_grad():
            scale = body.norm(patches * mean)
            with torch.no_grad():
                scale = scale - patches.amax(1, keepdim=True)
        shift = scale.mean(1, keepdim=True)
    return after_stem(body, scale + shift)


def handed_on(body: nn.Module, x: Tensor) -> Tensor:
    """Casts and dropout that do nothing are the value itself, which keeps its gradient outside."""
    patches = body.patch_embed(x).contiguous()
    with torch.no_grad():
        same = body.head_drop(patches.float().contiguous().to(x.device)).type_as(x)
        mean = same.mean(1, keepdim=True) + body.head.weight.float().mean()
    return after_stem(body, patches - mean)


def counted(body: nn.Module, x: Tensor) -> Tensor:
    """A size and whole numbers leave the region, beside what may have gradients."""
    patches = body.patch_embed(x)
    with torch.no_grad():
        rows, largest = patches.shape[0] * 2, patches.argmax(-1)
        twice = patches.repeat(2, 1, 1)
    shift = twice.view(rows, -1, patches.shape[-1]).mean((0, 1)) * largest.max().clamp_max(1)
    return after_stem(body, patches + shift.mean())


def narrow(body: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return body(x).float()


def wide_positions(body: nn.Module, x: Tensor) -> Tensor:
    patches = body.patch_embed(x)
    with torch.autocast("cpu", enabled=False):
        turned = patches.float() * 1.5
    return after_stem(body, turned)


def teacher(body: nn.Module, x: Tensor) -> Tensor:
    """Without gradients inside of autocast, and autocast off inside of that."""
    with torch.autocast("cpu", torch.bfloat16):
        patches = body.patch_embed(x)
        with torch.no_grad():
            target = body.norm(body.patch_embed(x)).mean(1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                target = target + patches.bfloat16().float().mean(1, keepdim=True)
        return after_stem(body, patches.float() - target)


def after_stem(body: nn.Module, patches: Tensor) -> Tensor:
    x = body.norm_pre(body._pos_embed(patches))
    return body.forward_head(body.norm(body.blocks(x)))


REGIONS = {
    f.__name__: f
    for f in (frozen_stem, centred, nested, handed_on, counted, narrow, wide_positions, teacher)
}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("name", REGIONS)
def test_a_region_keeps_its_mode(name: str) -> None:
    model, x = Around(REGIONS[name], tiny()), images()
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(fast(x), model(x))
    theirs, ours = gradients(model, x), gradients(fast, x)
    assert [g is None for g in ours.values()] == [g is None for g in theirs.values()]
    assert any(g is not None for g in ours.values())
    for name, gradient in theirs.items():
        if gradient is not None:
            torch.testing.assert_close(ours[name], gradient, rtol=0, atol=0)
    fast.r = 2
    assert fast.schedule == (2, 2)
    assert not torch.equal(fast(x), model(x))


@pytest.mark.parametrize("function", [frozen_stem, centred, narrow])
def test_symbolic_tracing_does_not_lose_a_region(function: Callable[..., Tensor]) -> None:
    model = Around(function, tiny())
    with pytest.raises(tome_fx.CaptureError, match="is not recorded by symbolic tracing") as caught:
        tome_fx.transform(model, 0, example_inputs=images(), capture="symbolic_trace")
    assert ".py:" in str(caught.value)


@torch.no_grad()
@lacks("cannot compile calls that switch autocast")
@pytest.mark.few(1)
@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_inside_holds_against_autocast_around(inside: bool, around: bool) -> None:
    model, x = Cast(inside), images()
    plain = tome_fx.transform(model, 0, example_inputs=x)
    fast = tome_fx.transform(model, 2, example_inputs=x)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around):
        assert torch.equal(plain(x), model(x))
        assert fast(x).dtype == model(x).dtype
        assert torch.equal(compiled(x), fast(x))
    loaded: Any = torch.export.export(fast, (x,)).module()
    assert torch.equal(loaded(x), fast(x))
