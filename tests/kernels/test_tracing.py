"""What sees through the ops: fake tensors, ``torch.compile``, autograd. Nothing runs here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

import tome_fx
from tests.tiny import images, tiny
from tome_fx import kernels, ops, pipeline
from tome_fx.kernels import choice

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter has no kernels to trace"
)


class Seen(Exception):
    """The graph is there, and cannot run."""


class Driver:
    """An NVIDIA device as far as Triton's analysis of a kernel asks."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choice, "_forced", lambda kind: True)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    torch._dynamo.reset()
    with kernels.using("triton"):
        yield
    torch._dynamo.reset()


def step(keys: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    plan = ops.match_keys(keys, 3, 1, 1, 0)
    return ops.merge_norm(x, plan, None, keys, [24], weight, None, 1e-6, 1, 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_on_fake_tensors(device: str, dtype: torch.dtype) -> None:
    with FakeTensorMode():
        keys = torch.empty(2, 3, 10, 8, device=device, dtype=dtype)
        x, weight = torch.empty(2, 10, 24, device=device, dtype=dtype), torch.empty(24)
        found = step(keys, x, weight.to(x))
        plain = ops.match_keys(keys, 3, 1, 1, 0)
        with kernels.using("portable"):
            expected = [*step(keys, x, weight.to(x)), *ops.match_keys(keys, 3, 1, 1, 0)]
    for ours, theirs in zip([*found, *plain], expected, strict=True):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert ours.stride() == theirs.stride()


def graph_of(function: Callable[..., Any], *args: Tensor) -> GraphModule:
    """What ``torch.compile`` makes of a function, before it is split into forward and backward."""
    found: list[GraphModule] = []

    def collect(module: GraphModule, *_: object, **__: object) -> Any:
        found.append(module)
        raise Seen("the graph is there")

    backend = aot_autograd(fw_compiler=collect, bw_compiler=collect, partition_fn=collect)
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    with pytest.raises(Exception, match="the graph is there"):
        compiled(*args)
    return found[0]


def test_compile_sees_the_kernels_and_copies_nothing() -> None:
    args = torch.randn(4, 3, 10, 8), torch.randn(4, 10, 24), torch.randn(24)
    launched = [
        node
        for node in graph_of(step, *args).graph.nodes
        if node.target is torch.ops.higher_order.triton_kernel_wrapper_functional
    ]
    written = [sorted(node.kwargs["tensors_to_clone"]) for node in launched]
    assert written == [
        ["high", "low"],
        ["dst", "keep", "src"],
        ["level", "merged", "new_size", "normed"],
    ]
    for node in launched:  # what is written is read by nobody else
        names = {arg for name, arg in node.kwargs["kwargs"].items() if name in written}
        others = {arg for name, arg in node.kwargs["kwargs"].items() if name not in written}
        assert not names & others


def test_the_backward_is_plain() -> None:
    args = torch.randn(4, 3, 10, 8), torch.randn(4, 10, 24), torch.randn(24)
    for leaf in args[1:]:
        leaf.requires_grad_()
    joint = graph_of(lambda *a: step(*a)[1], *args)
    nodes = [node for node in joint.graph.nodes if node.op == "call_function"]
    names = [str(node.target) for node in nodes]
    last = max(place for place, name in enumerate(names) if "triton" in name)
    backward = names[last + 1 :]
    assert sum("triton" in name for name in names) == 3
    assert any("native_layer_norm_backward" in name for name in backward)
    assert any("gather" in name for name in backward)


def test_export_keeps_the_ops_where_asked() -> None:
    class Step(torch.nn.Module):
        def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
            return step(*args)

    args = torch.randn(4, 3, 10, 8), torch.randn(4, 10, 24), torch.randn(24)
    held = {}
    for mode in ("triton", "auto"):
        with kernels.using(mode):
            program = torch.export.export(Step(), args)
        names = [str(node.target) for node in program.graph.nodes]
        held[mode] = [name for name in names if name.startswith("tome_fx")]
    assert held == {"triton": ["tome_fx.match.default", "tome_fx.merge_norm.default"], "auto": []}


def test_a_layer_has_two_kernels_more_than_without_merging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unit vectors and the plan; merge, sum and norm are one, and attention takes its level."""
    model, x = tiny(depth=4).half(), images(3).half()
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)
    monkeypatch.setattr(kernels, "has_attention", lambda device, dtype, width: True)
    with kernels.using("portable"):
        fast = tome_fx.transform(model, 1, example_inputs=x, attention="kernel", check=False)
    with torch.no_grad():
        nodes = graph_of(fast, x).graph.nodes
    launches = torch.ops.higher_order.triton_kernel_wrapper_functional
    launched = [node for node in nodes if node.target is launches]
    written = Counter(tuple(sorted(node.kwargs["tensors_to_clone"])) for node in launched)
    assert written == {
        ("high", "low"): 4,
        ("dst", "keep", "src"): 4,
        ("level", "merged", "new_size", "normed"): 4,
        ("result",): 3,  # the first attention has no sizes yet
    }
    names = [str(node.target) for node in nodes]
    assert sum(name.startswith("aten.cat") for name in names) == 1  # the class token's
    assert not any(word in name for name in names for word in ("log", "scatter", "gather", "sort"))
