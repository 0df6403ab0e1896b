"""Each pass on its own: what it takes, what it leaves alone, and how it prints."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, symbolic_trace

import tome_fx
from tests.tiny import Around, images, tiny
from tome_fx import ops
from tome_fx.capturing.examples import Example
from tome_fx.errors import VerificationError
from tome_fx.finding.infer import infer
from tome_fx.passes.capture import capture
from tome_fx.passes.lift import lift
from tome_fx.passes.locate import locate
from tome_fx.passes.lower import lower
from tome_fx.passes.normalize import normalize
from tome_fx.passes.plan import plan
from tome_fx.passes.verify import verify
from tome_fx.program import Findings, Program

aten = torch.ops.aten


@pytest.fixture(scope="module")
def program() -> Program:
    x = images()
    captured = capture(tiny(), Example((x,), {}, x.shape[0]))
    normalize(captured.graph)
    return captured


@pytest.fixture(scope="module")
def findings(program: Program) -> Findings:
    return locate(program, {})


def test_capture_prints_its_door_and_graph(program: Program) -> None:
    assert str(program).startswith("captured by export, any batch\ngraph()")
    assert not program.static_batch


def test_normalize_drops_what_does_nothing_and_spells_views_as_reshapes() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    dropped = graph.call_function(aten.dropout.default, (x, 0.5, False))
    kept = graph.call_function(aten.dropout.default, (dropped, 0.5, True))
    view = graph.call_function(aten.view.default, (kept, [-1]))
    graph.call_function(aten.neg.default, (view,))
    graph.output(view)
    targets = [node.target for node in normalize(graph).nodes if node.op == "call_function"]
    assert targets == [aten.dropout.default, aten.reshape.default]


def test_normalize_drops_attention_that_nobody_reads() -> None:
    graph = Graph()
    q = graph.placeholder("q")
    attention = aten.scaled_dot_product_attention.default
    graph.call_function(attention, (q, q, q))
    draws = graph.call_function(attention, (q, q, q, None, 0.5))
    read = graph.call_function(attention, (q, q, q))
    graph.output(read)
    left = [node for node in normalize(graph).nodes if node.op == "call_function"]
    assert left == [draws, read]  # what draws random numbers changes those drawn later


class Halves(nn.Module):
    """Slices of all places, of some, and the same row made for each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row = x[:][:, 0 : x.shape[1]]
        first, second = row[:, None, :4].neg(), row[:, None, 4:].neg()
        return first, second, x.transpose(1, 2).neg(), x.transpose(0, 1).neg()


@pytest.mark.parametrize("batch", [1, 3])
def test_normalize_drops_slices_of_all_places_and_equal_views(batch: int) -> None:
    model, x = Halves(), torch.randn(batch, 8, 6)
    program = capture(model, Example((x,), {}, batch))
    normalize(program.graph)
    calls = [(node.target, *node.args[1:3]) for node in program.graph.nodes]
    assert [own[1:] for own in calls if own[0] is aten.slice.Tensor] == [(2, 0), (2, 4)]
    assert sum(own[0] is aten.unsqueeze.default for own in calls) == 1
    assert sum(own[0] is aten.transpose.int for own in calls) == 2
    again = GraphModule(nn.Module(), program.graph)
    for own, other in zip(again(x), model(x), strict=True):
        assert torch.equal(own, other)


def test_a_layer_behind_the_tap_is_no_miss() -> None:
    model = Around(lambda body, x: body.get_intermediate_layers(x, n=[0])[0])
    report = tome_fx.explain(model, 2, example_inputs=(images(),))
    assert len(report.blocks) == 1
    assert not report.near_misses


def test_locate_prints_streams_and_sites(findings: Findings) -> None:
    lines = str(findings).splitlines()
    assert re.fullmatch(r"stream S0: \d+ of conv2d, \d+ of conv2d", lines[0])
    assert len(lines) == 3
    assert "attention scaled_dot_product_attention (sdpa), MLP blocks.0.mlp" in lines[1]


def test_plan_prints_the_tokens_of_each_site(findings: Findings) -> None:
    schedule = plan(findings, [4, 1])
    assert str(schedule).splitlines()[0].endswith("9 - 4 -> 5")
    assert str(schedule).splitlines()[1].endswith("5 - 1 -> 4")


def test_lift_leaves_the_program_as_it_is(program: Program, findings: Findings) -> None:
    before = str(program.graph)
    lifted = lift(program, findings, plan(findings, 2))
    assert str(program.graph) == before
    merges = [node for node in lifted.graph.nodes if node.target is ops.merge]
    assert len(merges) == 2
    assert all(node.meta["nn_module_stack"] and node.meta["stack_trace"] for node in merges)
    assert "merge" in str(lifted)


def test_lower_shares_equal_computations_and_drops_unused_ones() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    first = graph.call_function(ops.along, (x, 3, 0, 1))
    second = graph.call_function(ops.along, (x, 3, 0, 1))
    other = graph.call_function(ops.along, (x, 4, 0, 1))
    own = [graph.call_function(aten.rand_like.default, (x,)) for _ in range(2)]
    graph.call_function(ops.along, (x, 5, 0, 1))
    graph.output((first, second, other, *own))
    kept = [node for node in lower(graph).nodes if node.op == "call_function"]
    assert [node.target for node in kept].count(ops.along) == 2
    assert [node.target for node in kept].count(aten.rand_like.default) == 2


def test_verify_finds_a_stale_count(program: Program, findings: Findings) -> None:
    lifted = lift(program, findings, plan(findings, 2))
    stale = next(
        node
        for node in lifted.graph.nodes
        if node.target is aten.reshape.default and node.args[1][0] == -1
    )
    stale.args = (stale.args[0], [-1, 10, *stale.args[1][2:]])
    module = GraphModule(_root(), lifted.graph)
    with pytest.raises(VerificationError, match="cannot run on merged tokens") as caught:
        verify(module, program)
    assert "blocks" in str(caught.value)


def test_verify_sees_an_output_of_another_shape(program: Program, findings: Findings) -> None:
    lifted = lift(program, findings, plan(findings, 2))
    result = lifted.graph.output_node()
    logits = result.args[0][0]
    with lifted.graph.inserting_before(result):
        wider = lifted.graph.call_function(aten.unsqueeze.default, (logits, 0))
    result.args = ((wider,),)
    with pytest.raises(VerificationError, match="output 0"):
        verify(GraphModule(_root(), lifted.graph), program)


def test_types_follow_histories_and_not_sizes() -> None:
    """Tokens, heads and channels all of extent 4: only the history tells them apart."""

    class Coincidence(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).transpose(1, 2) @ torch.ones(4, 4)

    x = torch.randn(3, 4, 2, 2)
    captured = capture(Coincidence(), Example((x,), {}, 3))
    types = infer(captured, (), {}, {})
    last = captured.graph.output_node().args[0][0]
    assert str(types[last][0]) == "[B, 2*2, 4]"
    origins = [factor.origin.kind for factor in types[last][0].axes[1]]
    assert origins == ["input", "input"]


def test_in_place_ops_become_plain_ones_at_each_door() -> None:
    def forward(body: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        y.select(1, 0).fill_(2.0)
        return body(y.add_(1))

    model, x = Around(forward).eval(), images(3)
    for door in ("export", "symbolic_trace"):
        captured = capture(model, Example((x,), {}, 3), door)
        mutable = [
            node
            for node in captured.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        ]
        assert mutable == []
        fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
        assert torch.equal(fast(x), model(x))


def test_a_mask_that_differs_from_image_to_image_is_noted() -> None:
    x, noted = images(3), {}
    for rows in (0, 1, 10):  # none, one of padding for all queries, one for each query
        mask = torch.ones(3, 1, rows, 10, dtype=torch.bool)
        options = {"example_kwargs": {"attn_mask": mask}} if rows else {}
        notes = tome_fx.explain(tiny(), 2, example_inputs=x, **options).notes
        noted[rows] = any("mask" in note for note in notes)
    assert noted == {0: False, 1: False, 10: True}


def _root() -> nn.Module:
    return symbolic_trace(tiny())
