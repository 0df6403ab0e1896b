"""What the backend reads off a graph besides its shapes: indices, gradient modes, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import tome_fx
from tests.compiling.common import R, backend, expected, listening
from tests.rules.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Host(nn.Module):
    """A tiny model, and any code between its tokens and its head."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.code = tiny(), code
        self.register_buffer("index", torch.tensor([4, 6]))
        self.angle = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        body: Any = self.body
        return self.code(self, body._pos_embed(body.patch_embed(x)))


def read(host: Host, x: Tensor) -> Tensor:
    body: Any = host.body
    return body.norm(body.blocks(x))[:, host.index].mean(1)  # type: ignore[no-any-return]


def turned(host: Host, x: Tensor) -> Tensor:
    body: Any = host.body
    with torch.no_grad():
        angle = torch.polar(torch.ones_like(host.angle), host.angle)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    x = torch.view_as_real(pairs * angle).flatten(-2)
    return body.forward_head(body.norm(body.blocks(x)))  # type: ignore[no-any-return]


def enabled(host: Host, x: Tensor) -> Tensor:
    body: Any = host.body
    with torch.enable_grad():
        return body.forward_head(body.norm(body.blocks(x)))  # type: ignore[no-any-return]


@torch.no_grad()
def test_tokens_read_by_an_index_buffer_are_protected() -> None:
    model, x, chosen = Host(read), images(), backend()
    compiled = torch.compile(model, backend=chosen, fullgraph=True)
    tome_fx.compiling.backend._TOLD.clear()
    with pytest.warns(tome_fx.ToMeWarning, match="picks by their places"):
        fast = tome_fx.transform(model, R, example_inputs=x)
    with pytest.warns(tome_fx.ToMeWarning, match="picks by their places"):
        out = compiled(x)
    assert torch.equal(out, fast(x))
    assert chosen.reports[0].protected == fast.report.protected


def test_nothing_flows_into_a_region_without_gradients() -> None:
    model, x = Host(turned), images()
    for r in (0, R):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend(r, inner="eager"))
        model.zero_grad()
        compiled(x).sum().backward()
        assert model.angle.grad is None
        assert model.body.blocks[0].attn.qkv.weight.grad is not None  # type: ignore[union-attr,index]


def test_gradients_that_a_region_switches_on_stay_on() -> None:
    compiled = torch.compile(Host(enabled), backend=backend(inner="eager"))
    with torch.no_grad():
        result, told = listening(compiled, images())
    assert result.requires_grad
    assert "switches gradients on" in told


@torch.no_grad()
def test_a_falling_schedule_and_a_list_are_different_backends() -> None:
    model, x = tiny(), images()
    assert tome_fx.backend((4, 0)) != tome_fx.backend([4, 0])
    torch.compile(model, backend=backend((2, 0)))(x)
    listed = torch.compile(model, backend=backend([2, 0]))(x)
    assert torch.equal(listed, expected(model, [2, 0])(x))


class Sorted(nn.Module):
    """A part of a model that puts tokens made elsewhere in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = tiny().blocks

    def forward(self, x: Tensor) -> Tensor:
        order = x.norm(dim=-1).argsort(1)[..., None].expand(-1, -1, x.shape[-1])
        return self.blocks(x.gather(1, order))  # type: ignore[no-any-return,operator]


@torch.no_grad()
def test_sorted_tokens_still_come_from_outside() -> None:
    chosen = backend()
    _, told = listening(torch.compile(Sorted(), backend=chosen), torch.randn(2, 10, 32))
    assert "tokens come from outside" in told
    assert not chosen.reports


@torch.no_grad()
def test_a_list_that_a_part_cannot_take_leaves_it_as_it_is() -> None:
    model, x = tiny(), images()
    compiled = torch.compile(model, backend=backend([1, 1, 1, 1]))
    result, told = listening(compiled, x)
    assert "has 4 entries" in told
    torch.testing.assert_close(result, model(x))


@torch.no_grad()
def test_each_model_is_told_of() -> None:
    for width in (8, 16):
        model = nn.Sequential(nn.Conv2d(3, width, 3), *[nn.ReLU()] * (width // 8))
        _, told = listening(torch.compile(model, backend=backend()), images())
        assert "No self-attention" in told


@pytest.mark.parametrize(
    ("options", "text"),
    [({"mode": "bogus"}, "mode='bogus'"), ({"inner_options": [1]}, "inner_options=")],
)
def test_bad_options_of_the_inner_backend(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match=text):
        tome_fx.backend(**options)


def data(host: Host, x: Tensor) -> Tensor:
    body: Any = host.body
    x = x + body.pos_embed.data + x.data
    return body.forward_head(body.norm(body.blocks(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [False, True])
def test_data_of_a_value_is_the_value_without_its_gradient(training: bool) -> None:
    model, x = Host(data), images(3)
    chosen = backend()
    merged, wanted = torch.compile(model, backend=chosen), expected(model)
    with torch.set_grad_enabled(training):
        out, ours = merged(x), wanted(x)
    torch.testing.assert_close(out, ours, rtol=1e-5, atol=1e-5)
    assert chosen.reports[0].schedule == (R, R)
    if training:
        kept = model.body.patch_embed.proj.weight
        first, second = (torch.autograd.grad(y.sum(), kept)[0] for y in (out, ours))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
