"""torchao's int8 weights, before a transform and after it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tome_fx
from tests.laws.common import TINY
from tests.threads import one_thread as one_thread
from tests.tiny import images, tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao looks for kernels that are not needed here
    quantization = pytest.importorskip("torchao.quantization")

pytestmark = [TINY, pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao")]


CONFIGS: dict[str, Callable[[], Any]] = {
    "weights": lambda: quantization.Int8WeightOnlyConfig(),
    "activations": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
}


def quantised(module: nn.Module, name: str) -> nn.Module:
    quantization.quantize_(module, CONFIGS[name]())
    return module


def int8(module: nn.Module) -> list[str]:
    """The weights that are held in 8 bits."""
    return [n for n, p in module.named_parameters() if type(p).__name__ == "Int8Tensor"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_quantised_model_is_transformed(name: str) -> None:
    x, model = images(4), quantised(tiny(), name)
    fast = tome_fx.transform(model, 0)
    assert int8(fast) == int8(model)
    assert len(int8(fast)) == 9  # four linears in each block, and the head
    with torch.no_grad():
        y, exact = model(x), tiny()(x)
        torch.testing.assert_close(fast(x), y, rtol=1e-4, atol=1e-5)
        assert 0 < float((y - exact).norm()) < 0.2 * float(exact.norm())
        fast.r = 2
        assert fast.schedule == (2, 2)
        merged = fast(x)
        expected = tome_fx.transform(tiny(), 2)(x)
        assert not torch.equal(merged, y)
        assert float((merged - expected).norm()) < 0.5 * float(expected.norm())
        if name == "activations":
            return  # the rest is the same for both
        for other in (copy.copy(fast), copy.deepcopy(fast)):
            assert int8(other) == int8(fast)
            torch.testing.assert_close(other(x), merged, rtol=1e-4, atol=1e-5)
        fast.train()
        torch.testing.assert_close(fast.eval()(x), merged, rtol=1e-4, atol=1e-5)
        again = tome_fx.transform(quantised(tiny(), name), 2)
        again.load_state_dict(fast.state_dict(), assign=True)
        torch.testing.assert_close(again(x), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_its_products_are_of_each_token_and_are_counted(name: str) -> None:
    """Rows of activations have scales of their own, so that equal tokens stay equal."""
    model, plain = quantised(tiny(img_size=64), name), tome_fx.explain(tiny(img_size=64), 4)
    fast = tome_fx.transform(model, 4)
    report = fast.report
    assert (report.macs_before, report.macs_after) == (plain.macs_before, plain.macs_after)
    assert not report.unmerges
    if name == "activations":
        assert [block.mlp for block in report.blocks] == [block.mlp for block in plain.blocks]
    patch = torch.randn(1, 3, 1, 16, 1, 16)
    equal = patch.expand(2, -1, 4, -1, 4, -1).reshape(2, 3, 64, 64)
    embedding = model.pos_embed
    embedding[:, 1:] = embedding[:, 1:2]  # type: ignore[index]
    # The last bit of an activation decides between two steps of 8 bits.
    step = 1e-5 if name == "weights" else 1e-2
    torch.testing.assert_close(fast(equal), model(equal), rtol=0, atol=step)
    x = images(size=64)
    assert float((fast(x) - model(x)).abs().max()) > 5e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_result_is_not_quantised(name: str) -> None:
    """It says so, and stays what it was; without a word it would have stayed so too."""
    model, x = tiny(), images()
    fast = tome_fx.transform(model, 2)
    y = fast(x)
    with pytest.raises(
        tome_fx.ConfigError, match="Quantise the model first, by torchao, then transform it"
    ):
        quantised(fast, name)
    assert int8(fast) == int8(model) == []
    assert torch.equal(fast(x), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch.ao")
def test_weights_that_no_graph_can_read_are_refused() -> None:
    old = pytest.importorskip("torch.ao.quantization")  # it is to be removed from torch
    packed = old.quantize_dynamic(tiny(), {nn.Linear})
    with pytest.raises(tome_fx.CaptureError, match=r"LinearPackedParams.*Quantise by torchao"):
        tome_fx.transform(packed, 2)


def test_weights_that_are_read_by_their_parts_are_refused() -> None:
    packed = tiny()
    quantization.quantize_(packed, quantization.Float8WeightOnlyConfig())
    with pytest.raises(tome_fx.CaptureError, match=r"qkv.weight is a tensor that is made of other"):
        tome_fx.transform(packed, 2)


@pytest.mark.compiler
def test_it_compiles() -> None:
    fast, x = tome_fx.transform(quantised(tiny(), "weights"), 2), images(4)
    with torch.no_grad():
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), fast(x), rtol=1e-4, atol=1e-5)
