"""Ops that nothing is known of but that others make: lifted by their parts, bits as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph

import tome_fx
from tests.rules.common import TINY, C, Projected, heads, host, images, joined, random, unmerged
from tome_fx.graph.calls import Call, bind
from tome_fx.graph.composites import write_out
from tome_fx.rules.base import Context, Refusal

pytestmark = TINY
aten = torch.ops.aten
WEIGHT = random(3, C)

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "distance": lambda x: F.pairwise_distance(x, x.sin()),
    "product of several axes": lambda x: torch.tensordot(x, WEIGHT, dims=([2], [1])),
    "products of channels": lambda x: torch.inner(x, WEIGHT),
    "of a size that the batch has": lambda x: (
        x[:, 1:] * torch.broadcast_to(x[:, :1], (x.shape[0], x.shape[1] - 1, C))
    ),
    "side by side": lambda x: torch.dstack([x, x.sin()]),
    "distances to a table": lambda x: F.pairwise_distance(x, WEIGHT[0], keepdim=True),
    "sum by einsum": lambda x: torch.einsum("bnc->bc", x),
    "moved and summed": lambda x: torch.einsum("b n c -> c b", x),
}


def test_stay_merged_by_their_parts() -> None:
    assert unmerged(OPS, how="aside") == set()


def test_bits_stay() -> None:
    for name, op in OPS.items():
        model, x = host(op, "aside"), images()
        same = tome_fx.transform(model, r=0, example_inputs=(x,))
        actual, expected = same(x)[1], model(x)[1]
        assert all(torch.equal(actual[key], expected[key]) for key in expected), name


COSINES: dict[str, Callable[[Tensor], Tensor]] = {
    "of channels": lambda x: F.cosine_similarity(x, x.flip(-1), dim=-1),
    "with the mean": lambda x: F.cosine_similarity(x, x.mean(1, keepdim=True), dim=-1),
    "with a table": lambda x: F.cosine_similarity(x, WEIGHT[0][None, None], dim=2),
}


def test_cosines_stay_merged_but_along_tokens() -> None:
    assert unmerged(COSINES, how="aside") == set()
    along = {"tokens": lambda x: F.cosine_similarity(x, x.sin(), dim=1)}
    assert unmerged(along, how="aside") == {"cosine_similarity"}


def test_gradients_stay() -> None:
    """A cosine's norms are clamped without a gradient: written out it would have another one."""
    for op in (*OPS.values(), lambda x: F.cosine_similarity(x / 9, x.sin(), dim=-1, eps=1.0)):
        model, x = host(op, "aside"), images()
        same = tome_fx.transform(model, r=0, example_inputs=(x,))
        own = [p for p in model.parameters() if p.requires_grad]
        both = [
            torch.autograd.grad(m(x)[1]["op"].square().sum(), own, allow_unused=True)
            for m in (same, model)
        ]
        for ours, theirs in zip(*both, strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)


def test_cosine_attention() -> None:
    def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = F.cosine_similarity(heads(q)[..., :, None, :], heads(k)[..., None, :, :], dim=-1)
        return joined(each.softmax(-1) @ heads(v))

    unmerged(Projected(cosine))


def test_what_has_a_part_without_a_rule_stays_whole() -> None:
    def loss(x: Tensor) -> Tensor:
        each = x.flatten(0, 1)
        return F.cross_entropy(each, each.argmax(-1), reduction="none").unflatten(0, x.shape[:2])

    assert unmerged({"loss": loss}, how="aside") == {"cross_entropy_loss"}


def whole(graph: Graph, is_known: Callable[[Call], bool] = lambda _: True) -> list[str]:
    write_out(graph, is_known)
    return [bind(node).name for node in graph.nodes if node.op == "call_function"]


@pytest.fixture
def graph() -> Graph:
    """One ``pairwise_distance`` of two inputs."""
    made, mode = Graph(), FakeTensorMode()
    x, y = made.placeholder("x"), made.placeholder("y")
    for node in (x, y):
        node.meta["val"] = mode.from_tensor(torch.randn(2, 3))
    op = made.call_function(aten.pairwise_distance.default, (x, y))
    op.meta["val"] = mode.from_tensor(torch.randn(2))
    op.meta["stack_trace"] = "here"
    made.output(op)
    return made


def test_parts_keep_the_place_of_the_whole(graph: Graph) -> None:
    assert len(whole(graph, lambda call: "distance" not in call.name)) > 1
    assert {node.meta["stack_trace"] for node in graph.nodes if node.op == "call_function"} == {
        "here"
    }
    graph.lint()


def test_what_is_known_stays(graph: Graph) -> None:
    assert whole(graph) == ["aten.pairwise_distance"]


def test_what_has_unknown_parts_stays(graph: Graph) -> None:
    assert whole(graph, lambda call: call.name == "aten.mul") == ["aten.pairwise_distance"]


def test_what_has_no_values_stays(graph: Graph) -> None:
    for node in graph.nodes:
        node.meta.pop("val", None)
    assert whole(graph, lambda call: "distance" not in call.name) == ["aten.pairwise_distance"]


def test_a_rule_of_the_user_comes_first() -> None:
    def refuses(context: Context) -> Refusal:
        return Refusal("it is not to be lifted")

    op = {"distance": OPS["distance"]}
    rules = {"aten.pairwise_distance": refuses}
    assert unmerged(op, how="aside", rules=rules) == {"pairwise_distance"}
