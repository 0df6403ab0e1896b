"""The pass that puts steps into one call; what it makes computes the same without kernels too."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

import tome_fx
from tests.packed import Packed
from tests.tiny import images, tiny
from tome_fx import kernels, ops, pipeline
from tome_fx.passes.fuse import fuse

aten = torch.ops.aten


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device with kernels, of which the ops themselves find none."""
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)


def targets(module: GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_same_bits_and_gradients(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = tiny(name).to(dtype), images(3).to(dtype)
    plain = tome_fx.transform(model, [3, 1], example_inputs=x)
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)
    fast = tome_fx.transform(model, [3, 1], example_inputs=x)
    found, unfused = targets(fast), targets(plain)
    assert found.count(ops.match_keys) == found.count(ops.merge_norm) == 2
    gone = (ops.head_mean, ops.similarity, ops.match, ops.merge, ops.merged_size)
    assert all(unfused.count(target) == 2 for target in gone)
    assert not set(gone) & set(found)
    assert torch.equal(fast(x), plain(x))
    assert all(
        torch.equal(a, b) for a, b in zip(fast.token_map(x), plain.token_map(x), strict=True)
    )
    assert str(fast.report) == str(plain.report)
    first, second = (
        torch.autograd.grad(module(x).square().sum(), list(model.parameters()))
        for module in (fast, plain)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("fused")
def test_what_is_known_of_a_node_goes_with_it() -> None:
    fast = tome_fx.transform(tiny(), 2, example_inputs=images())
    made = [n for n in fast.graph.nodes if n.target in (ops.match_keys, ops.merge_norm)]
    assert all(node.meta["nn_module_stack"] and node.meta["stack_trace"] for node in made)
    last = made[-1]
    shapes = [(6, 32), (6, 32), (5,), (6,)]
    assert [tuple(value.shape[1:]) for value in last.meta["val"]] == shapes
    parts = [n for n in fast.graph.nodes if n.args[:1] == (last,)]
    assert [n.target for n in parts] == [operator.getitem] * 2  # nobody asks for the last size
    assert [tuple(n.meta["val"].shape[1:]) for n in parts] == [(6, 32)] * 2


def by_kernel(model: nn.Module, r: object, monkeypatch: pytest.MonkeyPatch) -> GraphModule:
    """As where a kernel has attention with sizes."""
    monkeypatch.setattr(kernels, "has_attention", lambda device, dtype, width: True)
    return tome_fx.transform(model, r, example_inputs=images(3).double(), attention="kernel")


@torch.no_grad()
@pytest.mark.usefixtures("fused")
@pytest.mark.few(1)
@pytest.mark.parametrize("r", [[3, 1, 0, 2], [2, 0, 0, 0]])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_attention_reads_what_the_merge_made_of_its_sizes(
    name: str, r: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = tiny(name, depth=4).double(), images(3).double()
    plain = tome_fx.transform(model, r, example_inputs=x)
    fast = by_kernel(model, r, monkeypatch)
    assert targets(fast).count(ops.level_attention) == 3
    assert not {ops.along, ops.kernel_attention, ops.key_bias} & set(targets(fast))
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-9, atol=1e-12)
    for node in fast.graph.nodes:
        if node.target is ops.level_attention:
            (batch, _, keys, _), level = node.args[1].meta["val"].shape, node.args[3]
            assert level.meta["val"].shape == (batch, keys)


@torch.no_grad()
@pytest.mark.usefixtures("fused")
def test_sizes_of_another_layout_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of two parts: the norm behind each merge knows one of them alone."""

    def told(pieces: list[object], *layout: int) -> list[object]:
        graph = Graph()
        x, q = graph.placeholder("x"), graph.placeholder("q")
        made = graph.call_function(ops.merge_norm, (x,), {"front": 1})
        made.meta["val"] = (None,) * 4
        size = graph.call_function(operator.getitem, (made, 2))
        row = graph.call_function(ops.along, ([size if p is None else p for p in pieces], *layout))
        graph.output(graph.call_function(ops.kernel_attention, (q, q, q, row)))
        return [node.target for node in fuse(graph, kernels=True).nodes]

    assert ops.level_attention in told([1, None], 4, 0, 3)
    for pieces, layout in (
        ([1, None, 1], (4, 0, 3)),
        ([None], (4, 0, 3)),
        ([1, None, None], (4, 0, 3)),
        ([1, None], (4, 0, 2)),
        ([1, None], (4, 0, 3, 2, 1)),
        ([1, None], (3, 0, 2)),
    ):
        assert ops.level_attention not in told(pieces, *layout)


@pytest.mark.usefixtures("fused")
def test_without_scatter_nothing_is_fused() -> None:
    fast = tome_fx.transform(tiny(), 2, example_inputs=images(), scatter=False)
    assert not {ops.match_keys, ops.merge_norm} & set(targets(fast))


@pytest.mark.usefixtures("fused")
def test_checkpointed_training_runs() -> None:
    model, x = tiny(), images()
    model.set_grad_checkpointing(True)
    fast = tome_fx.transform(model.train(), 2, example_inputs=x)
    fast(x).sum().backward()
    assert model.blocks[0].norm2.weight.grad is not None


def by_hand(
    weight_first: bool = True, early: bool = False, shared: bool = False, residual: str = ""
) -> GraphModule:
    """match -> merged_size -> merge -> layer_norm, written node by node."""
    root = nn.Module()
    root.weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
    graph = Graph()
    k, x = graph.placeholder("k"), graph.placeholder("x")
    weight = graph.get_attr("weight") if weight_first else None
    metric = graph.call_function(ops.head_mean, (k, 0, 0))
    scores = graph.call_function(ops.similarity, (metric, 0))
    plan = graph.call_function(ops.match, (scores, 2, 0))
    size = graph.call_function(ops.merged_size, (plan, None, k))
    read = graph.call_function(aten.neg.default, (size,)) if early else size
    if residual:
        branch = graph.call_function(aten.cos.default, (x,))
        if residual == "narrow":
            branch = graph.call_function(aten.mean.dim, (branch, [2], True))
        alpha = {"alpha": 2} if residual == "doubled" else {}
        x = graph.call_function(aten.add.Tensor, (x, branch), alpha)
    merge = graph.call_function(ops.merge, (x, plan, None, size, 1))
    other = graph.call_function(aten.neg.default, (merge,))
    weight = weight or graph.get_attr("weight")
    norm = graph.call_function(aten.layer_norm.default, (merge, [4], weight))
    read_too = (x,) if residual == "read" else ()
    graph.output((norm, other, read, scores if shared else metric, *read_too))
    module = GraphModule(root, graph)
    values = torch.randn(2, 3, 8, 5).double(), torch.randn(2, 8, 4).double()
    ShapeProp(module).propagate(*values)
    for node in graph.nodes:
        if isinstance(node.meta.get("tensor_meta"), TensorMetadata):
            held = node.meta["tensor_meta"]
            node.meta["val"] = torch.empty(held.shape, dtype=held.dtype)
    return module


def agree(module: GraphModule) -> GraphModule:
    k, x = torch.randn(2, 3, 8, 5).double(), torch.randn(2, 8, 4).double()
    module.recompile()
    expected: tuple[Tensor, ...] = module(k, x)
    fuse(module.graph, kernels=True)
    module.recompile()
    assert all(torch.equal(a, b) for a, b in zip(module(k, x), expected, strict=True))
    return module


@pytest.mark.parametrize("weight_first", [True, False])
def test_other_readers_and_late_weights(weight_first: bool) -> None:
    found = targets(agree(by_hand(weight_first)))
    assert {ops.match_keys, ops.merge_norm, ops.head_mean} <= set(found)
    assert not {ops.match, ops.merge, ops.merged_size, aten.layer_norm.default} & set(found)


def test_sizes_that_are_read_before_stay() -> None:
    found = targets(agree(by_hand(early=True)))
    assert ops.merge_norm in found
    assert ops.merged_size in found


def test_scores_that_others_read_are_not_fused() -> None:
    found = targets(agree(by_hand(shared=True)))
    assert ops.match in found
    assert ops.match_keys not in found
    assert ops.merge_norm in found


@pytest.mark.parametrize(
    ("residual", "joins"),
    [("plain", True), ("read", False), ("narrow", False), ("doubled", False)],
)
def test_a_residual_sum_is_merged_as_it_is_made(residual: str, joins: bool) -> None:
    """Where nobody else reads it, and both parts are alike."""
    module = agree(by_hand(residual=residual))
    (fused,) = (node for node in module.graph.nodes if node.target is ops.merge_norm)
    assert ("branch" in fused.kwargs) == joins
    assert (aten.add.Tensor in targets(module)) == (not joins)


def test_a_norm_of_something_else_stays() -> None:
    module = by_hand()
    norm = next(n for n in module.graph.nodes if n.target is aten.layer_norm.default)
    norm.args = (norm.args[0].args[0], *norm.args[1:])
    assert aten.layer_norm.default in targets(agree(module))


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(24,), (16, 24, 16, 24)])
@pytest.mark.parametrize("around", [False, True])
def test_rows_without_an_axis_of_images(
    lengths: tuple[int, ...], around: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if around and len(lengths) > 1:
        pytest.skip("its lengths are an input")
    config = Packed(lengths=lengths, around=around)
    given = (config.rows(), *([torch.tensor(lengths)] if len(lengths) > 1 else []))
    model = config.build()
    plain = tome_fx.transform(model, 2, example_inputs=given, min_ratio=0)
    monkeypatch.setattr(pipeline, "_has_kernels", lambda program: True)
    fast = tome_fx.transform(model, 2, example_inputs=given, min_ratio=0)
    kinds = len(set(lengths))
    assert targets(fast).count(ops.match_keys) == 3 * kinds
    assert targets(fast).count(ops.merge_norm) == 3
    assert not set(targets(fast)) & {ops.merge, ops.match, ops.merged_size}
    norms = [n for n in fast.graph.nodes if n.target is aten.layer_norm.default]
    assert len(norms) == 3 + 1
    assert all(n.kwargs["branch"] is not None for n in fast.graph.find_nodes(
        op="call_function", target=ops.merge_norm))  # fmt: skip
    assert torch.equal(fast(*given), plain(*given))
