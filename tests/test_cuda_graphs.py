"""A rewritten program can be recorded as a CUDA graph: one device, no size that depends on values.

Traced on fake CUDA tensors, which need no device; where there is one, programs are recorded too.
What a recording cannot hold would show here: a tensor made on the CPU, an op that waits for the
device or whose result has a size of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

import tome_fx
from tests.rules.common import TINY
from tests.tiny import SIZE, Around, images, tiny

pytestmark = TINY
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 56}


def on_cuda(model: nn.Module, size: int) -> GraphModule:
    """The program of ``model`` with everything it is given on a CUDA device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {k: torch.empty(v.shape, dtype=v.dtype, device="cuda") for k, v in held.items()}
        x = torch.empty(4, 3, size, size, device="cuda")
        return make_fx(lambda s, x: functional_call(model, s, (x,)), tracing_mode="fake")(state, x)


def unfit(program: GraphModule) -> list[str]:
    """What a CUDA graph cannot hold."""
    found = []
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ())
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.device.type != "cuda":
            found.append(f"{node.name} is on {value.device}")
        # An index of whole numbers has its own shape; only one of booleans waits.
        fixed = node.target is torch.ops.aten.index.Tensor and all(
            index is None or index.meta["val"].dtype != torch.bool for index in node.args[1]
        )
        waits = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
        if waits and not fixed:
            found.append(f"{node.name} depends on values")
    return found


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224",
             "vit_small_patch14_reg4_dinov2"],
)  # fmt: skip
def test_one_device_and_no_value_that_is_waited_for(name: str) -> None:
    model = timm.create_model(name, **SMALL).eval()
    assert not unfit(on_cuda(tome_fx.transform(model, 2), SMALL["img_size"]))


@pytest.mark.few(2)
@pytest.mark.parametrize("attention", ["channel", "values", "plain"])
def test_each_form(attention: str) -> None:
    fast = tome_fx.transform(tiny(depth=3), 2, attention=attention)
    assert not unfit(on_cuda(fast, SIZE))


def test_what_is_unmerged_for_an_op_and_without_scatter() -> None:
    def rolled(body: nn.Module, x: Tensor) -> Tensor:
        return body.forward_features(x).roll(1, 1).mean(1)

    model = Around(rolled)
    fast = tome_fx.transform(model, 2, example_inputs=images(), scatter=False)
    assert not unfit(on_cuda(fast, SIZE))


def test_what_does_not_fit_is_seen() -> None:
    def waits(body: nn.Module, x: Tensor) -> Tensor:
        return body(x)[torch.tensor([0, 1])]

    assert unfit(on_cuda(Around(waits), SIZE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_device_gives_compiled_what_it_gives_eager(mode: str) -> None:
    model = tiny().to("cuda")  # in float32, where rounding decides on no pair
    fast = tome_fx.transform(model, 2)
    compiled = torch.compile(fast, mode=mode)
    for count in (4, 4, 4, 1):
        x = images(count).to("cuda")
        with torch.inference_mode():
            expected, found = fast(x), compiled(x).clone()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
