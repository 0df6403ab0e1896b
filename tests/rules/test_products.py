"""Products of three operands and more: linear attention with its divisor in the same einsum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from tests.rules.common import TINY, Projected, heads, joined, unmerged
from tome_fx.capturing.examples import Example
from tome_fx.passes.capture import capture
from tome_fx.passes.normalize import normalize

pytestmark = TINY
EINSUM = torch.ops.aten.einsum.default


def parts(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, what all keys tell of their values, and one over the weights of each query."""
    q, k, v = F.elu(heads(q)) + 1, F.elu(heads(k)) + 1, heads(v)
    return q, k.mT @ v, 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(2))


def queries_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(torch.einsum("bhnd,bhde,bhn->bhne", *parts(q, k, v)))


def values_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, told, share = parts(q, k, v)
    return joined(torch.einsum("...de,...nd,...n->...ne", told, rows, share))


def keys_and_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sum over the keys in the same call."""
    q, k, v = heads(q).softmax(-1), heads(k).softmax(2), heads(v)
    return joined(torch.einsum("bhnd, bhmd, bhme -> bhne", q, k, v))


def four(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, told, share = parts(q, k, v)
    scale = torch.tensor([0.5, 2.0], dtype=q.dtype)
    return joined(torch.einsum("bhnd,bhde,bhn,h->bhne", rows, told, share, scale))


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights, a scale for each head, and values."""
    weights = (heads(q) @ heads(k).mT).softmax(-1)
    scale = torch.tensor([0.5, 2.0], dtype=q.dtype)
    return joined(torch.einsum("bhnm,h,bhmd->bhnd", weights, scale, heads(v)))


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    mix.__name__: mix for mix in (queries_first, values_first, keys_and_values, four, softmax)
}


def test_products_of_several_operands_are_attention() -> None:
    blocks = {name: Projected(mix) for name, mix in ATTENTIONS.items()}
    assert unmerged(blocks, how="beside", sites=2 + len(blocks)) == set()


class Product(nn.Module):
    def __init__(self, equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.equation = equation
        self.more = nn.ParameterList(torch.randn(size, dtype=torch.float64) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, *self.more)


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("bnd,de,ef->bnf", ((5, 6), (6, 7))),
        ("bnd,dn,n->b", ((5, 4), (4,))),
        ("...d,de,...e->...", ((5, 6), (4, 6))),
        ("...d,d,d->d", ((5,), (5,))),
        ("bnd,de,ef,n->bf", ((5, 6), (6, 7), (4,))),
        ("bnd,nd,d->dbn", ((1, 5), (5,))),
    ],
)
def test_pairs_give_the_same_bits(equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    model, x = Product(equation, sizes), torch.randn(3, 4, 5, dtype=torch.float64)
    program = capture(model, Example((x,), {}, 3))
    graph = normalize(program.graph)
    calls = [node for node in graph.nodes if node.target is EINSUM]
    assert [len(node.args[1]) for node in calls] == [2] * len(sizes)
    assert torch.equal(torch.fx.GraphModule(model, graph)(x), model(x))


def test_the_pairs_of_a_path_are_kept() -> None:
    graph = Graph()
    given = [graph.placeholder(name) for name in "xyz"]
    shapes = (2, 3), (3, 4), (4, 5)
    for node, shape in zip(given, shapes, strict=True):
        node.meta["val"] = torch.randn(shape, dtype=torch.float64)
    values = [node.meta["val"] for node in given]
    product = graph.call_function(EINSUM, ("ab,bc,cd->ad", given), {"path": [1, 2, 0, 1]})
    product.meta["val"] = EINSUM("ab,bc,cd->ad", values)
    graph.output(product)
    first, second = (n for n in normalize(graph).nodes if n.target is EINSUM)
    assert first.args == ("bc,cd->db", given[1:])
    assert second.args == ("ab,db->ad", [given[0], first])
    module = torch.fx.GraphModule(nn.Module(), graph)
    assert torch.equal(module(*values), EINSUM("ab,bc,cd->ad", values, path=[1, 2, 0, 1]))
