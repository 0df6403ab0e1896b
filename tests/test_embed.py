"""Patches by a matrix product: the convolution that it replaces, and nothing else replaced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d

import tome_fx
from tests.profiles import examples
from tests.tiny import images, tiny
from tome_fx import ops, pipeline


@examples(30)
@given(
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5),
    st.integers(1, 4), st.integers(1, 4), st.booleans(),
)  # fmt: skip
def test_it_is_the_convolution(
    batch: int, channels: int, width: int, p: int, q: int, down: int, across: int, biased: bool
) -> None:
    x = torch.randn(batch, channels, down * p, across * q).double()
    weight = torch.randn(width, channels, p, q).double()
    bias = torch.randn(width).double() if biased else None
    found = ops.embed_patches(x, weight, bias)
    torch.testing.assert_close(
        found, conv2d(x, weight, bias, stride=(p, q)), rtol=1e-12, atol=1e-12
    )
    assert found.flatten(2).transpose(1, 2).is_contiguous()  # what comes next wants tokens as rows


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device with kernels, of which the ops themselves find none."""
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)


def count(module: tome_fx.ToMeModule) -> int:
    return sum(node.target is ops.embed_patches for node in module.graph.nodes)


def half(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model.bfloat16(), x.bfloat16()


@torch.no_grad()
@pytest.mark.usefixtures("fused")
def test_patches_of_an_image_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = half(tiny(), images(3))
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert count(fast) == 1
    assert "patches are embedded by a matrix product" in str(fast.report)
    found = fast(x)
    assert fast(x[:1]).shape == found[:1].shape
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: False)
    plain = tome_fx.transform(model, 2, example_inputs=x)
    assert count(plain) == 0
    torch.testing.assert_close(found, plain(x), rtol=0.02, atol=0.02)


@torch.no_grad()
@pytest.mark.usefixtures("fused")
def test_nothing_merged_is_the_model_itself() -> None:
    model, x = half(tiny(), images(3))
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert count(fast) == 0
    assert torch.equal(fast(x), model(x))


class Stem(nn.Module):
    """A convolution before a small ViT."""

    def __init__(self, channels: int, **options: int) -> None:
        super().__init__()
        self.model = tiny(in_chans=4)
        self.first = nn.Conv2d(channels, 4, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.first(x))


@pytest.mark.usefixtures("fused")
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("wide", "channels", "options", "expected"),
    [
        (96, 3, {"kernel_size": 2, "stride": 2}, 2),
        (96, 8, {"kernel_size": 2, "stride": 2}, 1),  # libraries are good at those
        (97, 3, {"kernel_size": 2, "stride": 2}, 1),  # pixels are left over
        (49, 3, {"kernel_size": 2, "stride": 1}, 1),  # windows overlap
        (94, 3, {"kernel_size": 2, "stride": 2, "padding": 1}, 1),
        (144, 3, {"kernel_size": 3, "stride": 3}, 2),
        (96, 4, {"kernel_size": 2, "stride": 2, "groups": 2}, 1),
    ],
)
def test_other_convolutions_stay(
    wide: int,
    channels: int,
    options: dict[str, int],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = half(Stem(channels, **options).eval(), torch.randn(2, channels, wide, wide))
    fast = tome_fx.transform(model, 2, example_inputs=x)
    assert count(fast) == expected
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: False)
    plain = tome_fx.transform(model, 2, example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=0.03, atol=0.03)


@pytest.mark.usefixtures("fused")
def test_other_precisions_stay() -> None:
    for model, x in ((tiny(), images(3)), (tiny().double(), images(3).double())):
        assert count(tome_fx.transform(model, 2, example_inputs=x)) == 0
