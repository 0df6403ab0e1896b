"""An einsum of several operands, read as products of two, keeps every bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from tests.profiles import examples
from tome_fx.graph.einsums import read_einsum

aten = torch.ops.aten


def read(equation: str, tensors: list[Tensor]) -> GraphModule:
    """The program of one einsum, read."""
    graph, mode = Graph(), FakeTensorMode()
    inputs = [graph.placeholder(f"x{i}") for i in range(len(tensors))]
    for node, value in zip(inputs, tensors, strict=True):
        node.meta["val"] = mode.from_tensor(value)
    graph.output(graph.call_function(aten.einsum.default, (equation, inputs)))
    whole = next(node for node in graph.nodes if node.op == "call_function")
    with mode:
        whole.meta["val"] = aten.einsum.default(equation, [node.meta["val"] for node in inputs])
        read_einsum(whole)
    return GraphModule(torch.nn.Module(), graph)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[Tensor]]:
    """An equation of one to four operands, in any layout, with and without unnamed axes."""
    sizes = {letter: draw(st.integers(1, 5)) for letter in "abCde"}
    dots = "..." if draw(st.booleans()) else ""
    terms = [
        "".join(
            draw(st.permutations(sorted(draw(st.sets(st.sampled_from(sorted(sizes)), min_size=1)))))
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    seen = sorted(set("".join(terms)))
    after = "".join(draw(st.permutations(sorted(draw(st.sets(st.sampled_from(seen)))))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    tensors = []
    for term in terms:
        shape = [*([2] if dots else []), *(sizes[letter] for letter in term)]
        order = draw(st.permutations(range(len(shape))))
        held = torch.randn([shape[i] for i in order], generator=generator, dtype=torch.float64)
        tensors.append(held.permute([order.index(i) for i in range(len(shape))]))
    return f"{','.join(dots + term for term in terms)}->{dots}{after}", tensors


@examples(300)
@given(equations())
def test_bits_stay(drawn: tuple[str, list[Tensor]]) -> None:
    equation, tensors = drawn
    assert torch.equal(read(equation, tensors)(*tensors), torch.einsum(equation, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_stands_as_it_comes_out(dtype: torch.dtype) -> None:
    """Linear attention, heads first: the other order is another product of matrices."""
    q = torch.randn(2, 64, 3, 2, 16, dtype=dtype).permute(2, 0, 3, 1, 4)[0]
    sums, context = torch.rand(2, 2, 64, dtype=dtype), torch.randn(2, 2, 16, 16, dtype=dtype)
    equation, tensors = "...de,...nd,...n->...ne", [context, q, sums]
    program = read(equation, tensors)
    assert torch.equal(program(*tensors), torch.einsum(equation, tensors))
    equations = [node.args[0] for node in program.graph.nodes if node.op == "call_function"]
    assert equations == ["...de,...nd->...ne", "...ne,...n->...ne"]
