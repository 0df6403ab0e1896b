"""Arguments by schema: keyword, position and default are one thing."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import Graph, Node

from tests.profiles import examples
from tome_fx.graph.calls import bind, packet_name, tensor_operands, unbind

aten = torch.ops.aten

# For each op, arguments behind the tensors: a default, or another value.
OPS: list[tuple[Any, tuple[str, ...], dict[str, tuple[Any, ...]]]] = [
    (aten.softmax.int, ("self",), {"dim": (-1, 0), "dtype": (None, torch.float64)}),
    (
        aten.mean.dim,
        ("self",),
        {"dim": ([1], [0, 2]), "keepdim": (False, True), "dtype": (None, torch.float32)},
    ),
    (aten.add.Tensor, ("self", "other"), {"alpha": (1, 2, 1.0)}),
    (
        aten.scaled_dot_product_attention.default,
        ("query", "key", "value"),
        {
            "attn_mask": (None,),
            "dropout_p": (0.0, 0.5),
            "is_causal": (False, True),
            "scale": (None, 0.5),
            "enable_gqa": (False, True),
        },
    ),
    (
        aten.slice.Tensor,
        ("self",),
        {"dim": (0, 1), "start": (None, 0, 2), "end": (None, 5), "step": (1, 2)},
    ),
]


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Node, dict[str, Any]]:
    """A call in any spelling that Python allows, and what it means."""
    op, tensors, options = draw(st.sampled_from(OPS))
    graph = Graph()
    meaning: dict[str, Any] = {name: graph.placeholder(name) for name in tensors}
    meaning.update({name: draw(st.sampled_from(values)) for name, values in options.items()})
    schema = {argument.name: argument for argument in op._schema.arguments}
    positional = [name for name in schema if not schema[name].kwarg_only]
    split = draw(st.integers(0, len(positional)))
    kwargs = {}
    for name in [*positional[split:], *(n for n in schema if schema[n].kwarg_only)]:
        argument = schema[name]
        default = argument.has_default_value() and argument.default_value == meaning[name]
        same = default and type(argument.default_value) is type(meaning[name])
        if not (same and draw(st.booleans())):
            kwargs[name] = meaning[name]
    args = tuple(meaning[name] for name in positional[:split])
    return graph.call_function(op, args, kwargs), meaning


@examples(100)
@given(spellings())
def test_every_spelling_binds_to_the_same_arguments(drawn: tuple[Node, dict[str, Any]]) -> None:
    node, meaning = drawn
    call = bind(node)
    assert call.arguments == meaning
    for name, value in meaning.items():
        assert isinstance(call[name], type(value))  # 1 is not 1.0, nor True
    assert [path for path, _ in tensor_operands(call)] == [
        name for name, value in meaning.items() if isinstance(value, Node)
    ]


@examples(100)
@given(spellings())
def test_what_is_unbound_binds_to_the_same(drawn: tuple[Node, dict[str, Any]]) -> None:
    node, meaning = drawn
    args, kwargs = unbind(bind(node), {})
    again = node.graph.call_function(node.target, args, kwargs)
    assert bind(again).arguments == meaning
    for argument in node.target._schema.arguments:
        assert argument.kwarg_only or argument.name not in kwargs
    twice = unbind(bind(again), {})
    assert twice == (args, kwargs)


@examples(100)
@given(spellings(), st.data())
def test_a_changed_argument_is_the_only_change(
    drawn: tuple[Node, dict[str, Any]], data: st.DataObject
) -> None:
    node, meaning = drawn
    name = data.draw(st.sampled_from(sorted(meaning)))
    other = node.graph.placeholder("other")
    args, kwargs = unbind(bind(node), {name: other})
    again = bind(node.graph.call_function(node.target, args, kwargs))
    assert again.arguments == {**meaning, name: other}
    assert bind(node).arguments == meaning


def test_defaults_are_left_out_and_what_stands_before_a_given_one_is_not() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    node = graph.call_function(aten.slice.Tensor, (x,), {"dim": 0, "start": None, "step": 1})
    assert unbind(bind(node), {}) == ((x,), {})
    assert unbind(bind(node), {"end": 4}) == ((x, 0, None, 4), {})


def test_elements_of_a_list_have_paths() -> None:
    graph = Graph()
    x, y, z = (graph.placeholder(name) for name in "xyz")
    call = bind(graph.call_function(aten.cat.default, ([x, y, x],), {"dim": 1}))
    assert list(tensor_operands(call)) == [("tensors.0", x), ("tensors.1", y), ("tensors.2", x)]
    args, kwargs = unbind(call, {"tensors.1": z, "dim": 2})
    assert (args, kwargs) == (([x, z, x], 2), {})
    assert call["tensors"] == [x, y, x]


def test_a_list_of_indices_has_holes() -> None:
    graph = Graph()
    x, i = graph.placeholder("x"), graph.placeholder("i")
    call = bind(graph.call_function(aten.index.Tensor, (x, [None, i])))
    assert list(tensor_operands(call)) == [("self", x), ("indices.1", i)]


def test_names() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    call = bind(graph.call_function(aten.mul.Tensor, (x, x)))
    assert call.name == packet_name(aten.mul.Tensor) == packet_name(aten.mul.Scalar) == "aten.mul"
    assert call.get("nothing", 3) == 3
    with pytest.raises(KeyError):
        call["nothing"]


@pytest.mark.parametrize("target", [operator.getitem, torch.add, print])
def test_only_ops_with_a_schema_bind(target: Any) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    with pytest.raises(TypeError, match="no schema"):
        bind(graph.call_function(target, (x, 0)))
    with pytest.raises(TypeError, match="no schema"):
        bind(x)
