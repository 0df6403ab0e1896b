"""Shapes without values: on the meta device as by fake tensors, or by the latter alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.utils._pytree import tree_leaves

import tome_fx
from tests.laws.common import TINY
from tests.tiny import Cast, images, tiny
from tome_fx.graph.extents import Extents
from tome_fx.graph.fakes import FakeRun, MetaRun, only_device

pytestmark = TINY
CPU = torch.device("cpu")


def kinds(values: Any) -> list[Any]:
    return [
        (type(v), v.shape, v.dtype, v.device) if isinstance(v, Tensor) else v
        for v in tree_leaves(values)
    ]


MODELS = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_say_the_same_of_each_node(name: str, dtype: torch.dtype) -> None:
    size = 56 if "14" in name else 48
    fast = tome_fx.transform(tiny(name, img_size=size).to(dtype), 2)
    captured, sizes = fast.located.program.graph, Extents(5)
    assert only_device(captured, fast.graph) == CPU
    quick, slow = MetaRun(fast, sizes, CPU), FakeRun(fast, sizes, fast.graph)
    quick.run_like(captured)
    slow.run_like(captured)
    assert list(quick.env) == list(slow.env) == list(fast.graph.nodes)
    for node, value in slow.env.items():
        assert kinds(quick.told(quick.env[node])) == kinds(value), node
        assert kinds(node.meta["val"]) == kinds(value), node


def test_autocast_and_several_devices_need_fake_tensors() -> None:
    fast = tome_fx.transform(Cast(enabled=True), 2)
    assert only_device(fast.graph) is None
    plain = tome_fx.transform(tiny(), 2)
    assert only_device(plain.graph) == CPU
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert only_device(plain.graph) is None
    graph = Graph()
    for place in ("cpu", "meta"):
        graph.placeholder(place).meta["val"] = torch.empty(2, device=place)
    assert only_device(graph) is None
    assert only_device(Graph()) is None


@torch.library.custom_op("tome_fx_tests::values_alone", mutates_args=())
def values_alone(x: Tensor) -> Tensor:
    return x * 2


@values_alone.register_fake
def _(x: Tensor) -> Tensor:
    if x.device.type == "meta":
        raise NotImplementedError("not on this device")
    return torch.empty_like(x)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(values_alone(x))  # type: ignore[no-any-return]


def test_what_the_meta_device_cannot_do_is_no_fault() -> None:
    model, x = Doubling().eval(), images(3)
    fast = tome_fx.transform(model, 2)
    assert fast.schedule == (2, 2)
    assert tome_fx.transform(model, 0)(x).equal(model(x))
    assert all("val" in node.meta for node in fast.graph.nodes)


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * torch.ops.aten.rand.default([10])  # type: ignore[no-any-return]


def test_nothing_is_drawn() -> None:
    model = Drawn().eval()
    before = torch.get_rng_state()
    fast = tome_fx.transform(model, 2)
    fast.r = 1
    assert torch.equal(torch.get_rng_state(), before)
