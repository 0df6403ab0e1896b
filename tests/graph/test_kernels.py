"""Kernels by their own names, and products as a decomposition writes them, in small graphs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from tests.versions import lacks
from tome_fx.graph.calls import bind
from tome_fx.graph.kernels import write_kernels
from tome_fx.graph.products import write_products

aten = torch.ops.aten
FIRST, BEHIND = (2, 3, 8, 4), (2, 8, 3, 4)


def called(
    op: Any, shape: tuple[int, ...], *args: Any, keys: int | None = None, **kwargs: Any
) -> Graph:
    """A graph with one call of a kernel on queries, keys and values, of which one result leaves."""
    graph, mode = Graph(), FakeTensorMode()
    qkv = [graph.placeholder(name) for name in "qkv"]
    for node in qkv:
        with mode:
            node.meta["val"] = torch.empty(shape)
    if keys is not None:
        with mode:
            short = torch.empty(*shape[:-2], keys, shape[-1])
        for node in qkv[1:]:
            node.meta["val"] = short
    kernel = graph.call_function(op, (*qkv, *args), kwargs)
    result = graph.call_function(operator.getitem, (kernel, 0))
    result.meta["val"] = qkv[0].meta["val"]
    graph.output(result)
    return graph


def attention_in(graph: Graph) -> Node | None:
    write_kernels(graph)
    found = [n for n in graph.nodes if n.target is aten.scaled_dot_product_attention.default]
    return found[0] if found else None


KERNELS: dict[str, tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "flash": (aten._scaled_dot_product_flash_attention.default, FIRST, (0.0,), {"scale": 0.5}),
    "of the CPU": (
        aten._scaled_dot_product_flash_attention_for_cpu.default, FIRST, (), {"scale": 0.5},
    ),
    "efficient": (
        aten._scaled_dot_product_efficient_attention.default, FIRST, (None, True), {"scale": 0.5},
    ),
    "cuDNN": (
        aten._scaled_dot_product_cudnn_attention.default, FIRST, (None, True), {"scale": 0.5},
    ),
    "of a device": (
        aten._scaled_dot_product_fused_attention_overrideable.default, FIRST, (), {"scale": 0.5},
    ),
    "flash, heads behind": (
        aten._flash_attention_forward.default, BEHIND,
        (None, None, 8, 8, 0.0, False, False), {"scale": 0.5},
    ),
    "efficient, heads behind": (
        aten._efficient_attention_forward.default, BEHIND,
        (None, None, None, None, None, 0.0, 0), {"scale": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_each_is_the_op_that_chooses_it(name: str) -> None:
    op, shape, args, kwargs = KERNELS[name]
    graph = called(op, shape, *args, **kwargs)
    node = attention_in(graph)
    assert node is not None
    call = bind(node)
    assert (call["scale"], call["attn_mask"], call["is_causal"]) == (0.5, None, False)
    assert not call["enable_gqa"]
    assert node.meta["val"].shape == FIRST
    result = next(iter(reversed(graph.nodes))).args[0]
    assert isinstance(result, Node)
    assert result.meta["val"].shape == shape
    assert op not in {each.target for each in graph.nodes}


FLASH = aten._flash_attention_forward.default
ASKED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "a window": ((None, None, 8, 8, 0.0, False, False), {"window_size_left": 2}),
    "pages": ((None, None, 8, 8, 0.0, False, False), {"block_table": "q"}),
    "several images in a row": (("q", "q", 8, 8, 0.0, False, False), {}),
}


@pytest.mark.parametrize(
    "name", ["a window", pytest.param("pages", marks=lacks("has none")), "several images in a row"]
)
def test_what_no_attention_has_stays(name: str) -> None:
    args, kwargs = ASKED[name]
    graph = called(FLASH, BEHIND)
    kernel = next(node for node in graph.nodes if node.target is FLASH)
    inputs = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    kernel.args = (*kernel.args, *(inputs.get(str(value), value) for value in args))
    kernel.kwargs = {key: inputs.get(str(value), value) for key, value in kwargs.items()}
    assert attention_in(graph) is None


def test_what_is_dropped_and_what_comes_first_is_kept() -> None:
    op = aten._scaled_dot_product_flash_attention.default
    dropping = attention_in(called(op, FIRST, 0.25, True))
    assert dropping is not None
    assert (bind(dropping)["dropout_p"], bind(dropping)["is_causal"]) == (0.25, True)
    assert attention_in(called(op, FIRST, 0.0, True, keys=5)) is None  # aligned in either way
    assert attention_in(called(op, FIRST, 0.0, False, keys=5)) is not None


def test_what_is_read_beside_the_result_keeps_its_kernel() -> None:
    graph = called(aten._scaled_dot_product_flash_attention.default, FIRST)
    kernel = next(node for node in graph.nodes if node.op == "call_function")
    with graph.inserting_after(kernel):
        sums = graph.call_function(operator.getitem, (kernel, 1))
    out = next(iter(reversed(graph.nodes)))
    out.args = ((out.args[0], sums),)
    assert attention_in(graph) is None


@pytest.mark.parametrize("channels", [4, 8])
def test_groups_are_of_the_second_axis(channels: int) -> None:
    """The kernel may be told that there are other images and channels than on the first axes."""
    graph, mode = Graph(), FakeTensorMode()
    x = graph.placeholder("x")
    with mode:
        x.meta["val"] = torch.empty(2, 8, 6)
    given = (x, None, None, 16 // channels, channels, 6, 2, 1e-5)
    kernel = graph.call_function(aten.native_group_norm.default, given)
    result = graph.call_function(operator.getitem, (kernel, 0))
    result.meta["val"] = x.meta["val"]
    graph.output(result)
    write_kernels(graph)
    read = aten.group_norm.default in {node.target for node in graph.nodes}
    assert read is (channels == 8)


def test_what_leaves_as_a_whole_keeps_its_kernel() -> None:
    graph = called(aten._scaled_dot_product_flash_attention.default, FIRST)
    out = next(iter(reversed(graph.nodes)))
    out.args = ((out.args[0], out.args[0].args[0]),)
    assert attention_in(graph) is None


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> Graph:
    return make_fx(function, tracing_mode="fake")(*inputs).graph


def safe(
    x: Tensor,
    number: float = -torch.inf,
    dim: int | None = -1,
    zero: int = 0,
    dtype: torch.dtype | None = None,
    zeros_in: torch.dtype | None = None,
) -> Tensor:
    """A softmax whose rows are zeros where they hide all, as torch writes it out."""
    weights = aten.softmax.int(x, -1, dtype)
    seen = aten.logical_not.default(aten.eq.Scalar(x, number))
    some = aten.any.default(seen) if dim is None else aten.any.dim(seen, dim, True)
    zeros = aten.full_like.default(weights, zero, dtype=zeros_in)
    return aten.where.self(aten.logical_not.default(some), zeros, weights)


def test_a_safe_softmax_is_one_op() -> None:
    graph = traced(lambda x: safe(x), torch.randn(2, 3, 4))
    write_kernels(graph)
    graph.eliminate_dead_code()
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert names == ["aten._safe_softmax.default"]


@pytest.mark.parametrize(
    "other",
    [
        {"number": 0.0},
        {"dim": -2},
        {"dim": None},
        {"zero": 1},
        {"dtype": torch.float64},
        {"zeros_in": torch.float64},
    ],
    ids=str,
)
def test_what_is_like_one_stays(other: dict[str, Any]) -> None:
    graph = traced(lambda x: safe(x, **other), torch.randn(2, 3, 4))
    write_kernels(graph)
    assert not [n for n in graph.nodes if "safe" in str(n.target)]


def folded(x: Tensor, w: Tensor, batch: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """A product of what is expanded to one batch and folded, in a shape."""
    sides = [side.expand(*batch, *side.shape[-2:]) for side in (x, w)]
    flat = [side.reshape(-1, *side.shape[-2:]) for side in sides]
    return aten.view.default(torch.bmm(*flat), list(out))


@pytest.mark.parametrize(
    ("x", "w", "batch"), [((2, 3, 5, 4), (4, 6), (2, 3)), ((3, 5, 4), (2, 1, 4, 6), (2, 3))]
)
def test_a_folded_product_is_one_of_what_was_folded(x: Any, w: Any, batch: Any) -> None:
    given = torch.randn(x).double(), torch.randn(w).double()
    graph = traced(lambda *sides: folded(*sides, batch, (*batch, 5, 6)), *given)
    write_products(graph)
    graph.eliminate_dead_code()
    assert aten.matmul.default in {node.target for node in graph.nodes}
    assert aten.bmm.default not in {node.target for node in graph.nodes}
    out = torch.fx.GraphModule({}, graph)(*given)
    torch.testing.assert_close(out, folded(*given, batch, (*batch, 5, 6)))


def test_a_product_in_another_shape_stays_folded() -> None:
    given = torch.randn(2, 3, 5, 4), torch.randn(4, 6)
    graph = traced(lambda *sides: folded(*sides, (2, 3), (3, 2, 5, 6)), *given)
    write_products(graph)
    assert aten.bmm.default in {node.target for node in graph.nodes}


@pytest.mark.parametrize("inner", [1, 6])
def test_a_product_of_an_expanded_matrix_stays_folded(inner: int) -> None:
    """It adds up what was expanded, which a product of what was not does not."""
    given = torch.randn(2, 3, 5, 1).double(), torch.randn(2, 3, inner, 7).double()

    def run(x: Tensor, w: Tensor) -> Tensor:
        flat = x.expand(2, 3, 5, 6).reshape(6, 5, 6), w.expand(2, 3, 6, 7).reshape(6, 6, 7)
        return aten.view.default(torch.bmm(*flat), [2, 3, 5, 7])

    graph = traced(run, *given)
    write_products(graph)
    assert aten.bmm.default in {node.target for node in graph.nodes}
    torch.testing.assert_close(torch.fx.GraphModule({}, graph)(*given), run(*given))
