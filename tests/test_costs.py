"""The estimate's parts: devices, kernels, and the time of each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, symbolic_trace

import tome_fx
from tests.profiles import examples
from tome_fx import ops
from tome_fx.costs.hardware import DEVICES, DeviceModel, device_model, device_of
from tome_fx.costs.kernels import kernels_of
from tome_fx.costs.work import work_of

aten = torch.ops.aten
WORK = st.integers(0, 10**15)


@examples(100)
@given(st.sampled_from(sorted(DEVICES)), WORK, WORK, WORK, WORK)
def test_more_work_never_takes_less(
    name: str, half: int, single: int, moved: int, more: int
) -> None:
    device = DEVICES[name]
    least = device.seconds(half, single, moved)
    assert least >= device.launch
    assert device.seconds(half + more, single, moved) >= least
    assert device.seconds(half, single + more, moved) >= least
    assert device.seconds(half, single, moved + more) >= least


def test_the_bound_that_holds_is_the_longest() -> None:
    device = DeviceModel("x", half=8e9, single=4e9, bandwidth=1e9, launch=1e-6)
    assert device.seconds(0, 0, 0) == 1e-6
    assert device.seconds(0, 4 * 10**9, 10**6) == 1.0
    assert device.seconds(8 * 10**9, 0, 2 * 10**9) == 2.0


def test_devices_by_name_by_numbers_and_as_they_are() -> None:
    own = DeviceModel("mine", 2e12, 1e12, 1e11, 1e-6)
    assert device_model(own) is own
    assert device_model(dataclasses.asdict(own)) == own
    assert device_model("h200") is DEVICES["h200"]
    assert device_model(None) is None
    assert device_of(torch.zeros(1)) is device_of(None) is DEVICES["cpu"]
    with pytest.raises(tome_fx.ConfigError, match=r"no model of the device 'meta'.*hardware="):
        device_of(torch.zeros(1, device="meta"))
    with pytest.raises(tome_fx.ConfigError, match="half=0 is not a number above 0"):
        DeviceModel("x", 0, 1.0, 1.0, 1.0)
    with pytest.raises(tome_fx.ConfigError, match="kernels='no' is not True or False"):
        device_model({**dataclasses.asdict(own), "kernels": "no"})
    old = {name: value for name, value in dataclasses.asdict(own).items() if name != "kernels"}
    assert device_model(old) == own


@pytest.mark.slow
def test_this_machine_can_be_measured() -> None:
    found = DeviceModel.measure()
    assert found.name == "this cpu"
    assert 1e8 < found.single < 1e14
    assert 1e8 < found.bandwidth < 1e13
    assert 1e-8 < found.launch < 1e-2


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_no_machine_to_measure(device: str) -> None:
    with pytest.raises(tome_fx.ConfigError, match="is no device of this machine"):
        DeviceModel.measure(device)


def graph_of(build: object, *shapes: tuple[int, ...]) -> Graph:
    """A graph of ATen ops on inputs of these shapes."""
    graph = Graph()
    inputs = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
    for node, shape in zip(inputs, shapes, strict=True):
        node.meta["val"] = torch.empty(shape, device="meta")
    graph.output(build(graph, *inputs))  # type: ignore[operator]
    return graph


def counted(graph: Graph, macs: dict[str, int] | None = None) -> list[tuple[int, int]]:
    """Operations and bytes of each kernel."""
    named = {node: (macs or {}).get(node.name, 0) for node in graph.nodes}
    found = kernels_of(work_of(nn.Module(), graph, 1, named, graph), lambda node: None)
    return [(kernel.single, kernel.moved) for kernel in found]


def test_an_add_and_its_norm_are_one_kernel() -> None:
    def build(graph: Graph, x: object, y: object) -> object:
        total = graph.call_function(aten.add.Tensor, (x, y))
        normed = graph.call_function(aten.layer_norm.default, (total, [8]))
        return (total, graph.call_function(aten.gelu.default, (normed,)))

    # Two operands read; the sum is written too only if another kernel reads it: none does here.
    assert counted(graph_of(build, (4, 8), (4, 8))) == [(3 * 32, 3 * 128)]


def test_a_product_stands_alone_and_a_view_is_nothing() -> None:
    def build(graph: Graph, x: object, y: object) -> object:
        product = graph.call_function(aten.mm.default, (x, y))
        turned = graph.call_function(aten.t.default, (product,))
        shaped = graph.call_function(aten.reshape.default, (turned, [-1]))
        return graph.call_function(aten.relu.default, (shaped,))

    found = counted(graph_of(build, (4, 8), (8, 2)), {"mm_default": 64})
    assert found == [(2 * 64, 4 * (32 + 16 + 8)), (8, 4 * (8 + 8))]


def test_what_reads_one_product_is_one_kernel() -> None:
    def build(graph: Graph, x: object, y: object) -> object:
        product = graph.call_function(aten.mm.default, (x, y))
        one = graph.call_function(aten.relu.default, (product,))
        two = graph.call_function(aten.neg.default, (product,))
        return (one, two)

    assert len(counted(graph_of(build, (4, 8), (8, 2)), {"mm_default": 64})) == 2


def test_what_a_rewrite_inserts_is_looked_into() -> None:
    def build(graph: Graph, metric: object) -> object:
        return graph.call_function(ops.similarity, (metric, 0))

    (norm, product, after) = counted(graph_of(build, (2, 6, 16)))
    assert product[0] == 2 * 2 * 3 * 3 * 16  # multiply-adds of |A| x |B| cosines
    assert norm[1] >= 2 * 4 * 2 * 6 * 16  # reads the metric, writes it at unit length
    assert after[1] > 0


def test_operations_grow_with_the_batch_and_weights_do_not() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            return aten.linear.default(x, self.weight)

    module: GraphModule = symbolic_trace(Block())
    weight, x = 64 * 64 * 4, 64 * 4
    for batch in (1, 3):
        for node in module.graph.nodes:
            if node.op == "placeholder":
                node.meta["val"] = torch.empty(batch, 64)
        linear = next(n for n in module.graph.nodes if n.target is aten.linear.default)
        (op,) = work_of(module, module.graph, batch, {linear: 64 * 64}, module.graph)
        assert op.macs == batch * 64 * 64
        (kernel,) = kernels_of([op], lambda node: None)
        assert kernel.moved == weight + batch * 2 * x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "launches"), [(40, 2), (258, 2), (259, 3)])
def test_our_own_kernels_are_whole_and_serve_up_to_float32(
    dtype: torch.dtype, tokens: int, launches: int
) -> None:
    """Up to 128 rows of A one kernel pairs and ranks, after that which makes unit vectors."""
    graph = Graph()
    keys = graph.placeholder("keys")
    keys.meta["val"] = torch.empty(2, 3, tokens, 8, dtype=dtype, device="meta")
    graph.output(graph.call_function(ops.match_keys, (keys, 4, 1, 1)))
    node = next(n for n in graph.nodes if n.op == "call_function")
    served = dtype != torch.float64
    plain, own = (work_of(nn.Module(), graph, 2, {}, graph, kernels) for kernels in (False, True))
    assert (len(own) == launches) == served
    if not served:
        assert [(op.kind, op.macs) for op in own] == [(op.kind, op.macs) for op in plain]
    else:
        first = own[0]
        assert (first.node, first.kind) == (node, "alone")
        assert sum(value.size for value in first.reads) == keys.meta["val"].nbytes
        assert first.macs == sum(op.macs for op in plain) > 0
        # The tokens that stay, those that go and where to, as int64.
        assert sorted(value.count for value in first.writes) == [2 * 4, 2 * 4, 2 * (tokens - 5)]
        assert [op.writes for op in own[1:]] == [()] * (launches - 1)
