"""The front door through ``torch.fx.symbolic_trace`` and functorch's ``make_fx``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from tome_fx.capturing.assigned import Tensors
from tome_fx.capturing.blame import blame
from tome_fx.capturing.calling import accept_defaults
from tome_fx.capturing.describing import describe, mutates, no_fast_path, read_by
from tome_fx.capturing.examples import Example
from tome_fx.capturing.held import HoldingTracer
from tome_fx.capturing.insides import put_together, taken_apart
from tome_fx.capturing.known import constants_known
from tome_fx.capturing.nesting import levels_closed
from tome_fx.capturing.results import refuse_unknown
from tome_fx.errors import CaptureError
from tome_fx.graph.flex import flex_allowed, write_flex
from tome_fx.graph.inplace import make_plain
from tome_fx.graph.provenance import with_paths
from tome_fx.program import Program


def symbolic_trace(model: nn.Module) -> tuple[GraphModule, frozenset[str]]:
    """``torch.fx.symbolic_trace``, and the buffers whose numbers decided what was traced.

    Raises:
        CaptureError: the model cannot be traced so; the text quotes its own line.
    """
    tracer, before = HoldingTracer(), Tensors(model)
    try:
        try:
            with tracer.once:
                graph = tracer.trace(model)
        finally:
            assigned = before.put_back()
        before.record(graph, assigned)
    except Exception as error:
        raise CaptureError(f"torch.fx.symbolic_trace cannot trace it: {blame(error)}") from error
    return GraphModule(tracer.root, graph, type(model).__name__), frozenset(tracer.names)


def from_graph_module(
    traced: GraphModule, source: nn.Module, example: Example, how: str
) -> Program:
    """``make_fx`` through a traced module, with its parameters named as in ``source``."""
    state = {
        **dict(traced.named_parameters(remove_duplicate=False)),
        **dict(traced.named_buffers(remove_duplicate=False)),
    }
    places, keywords = _bound(source, example)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    flat, spec = pytree.tree_flatten((example.args, keywords))
    fakes = [_fake(mode, value, example) for value in flat]
    weights = {name: mode.from_tensor(value, static_shapes=True) for name, value in state.items()}
    runner = _Runner(traced)

    def call(weights: dict[str, torch.Tensor], *inputs: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(list(inputs), spec)
        named = {f"module.{name}": value for name, value in weights.items()}
        return torch.func.functional_call(runner, named, args, kwargs)

    outputs: list[Any] = []

    def flat_call(weights: dict[str, torch.Tensor], *inputs: Any) -> Any:
        leaves, out_spec = pytree.tree_flatten(call(weights, *inputs))
        refuse_unknown(leaves)
        outputs.append(out_spec)
        return leaves

    graph_module = aten_module(flat_call, (weights, *fakes), mode)
    leaves = _leaf_names(places, example.args) + _leaf_names(list(keywords), keywords.values())
    graph = named_graph(graph_module.graph, list(weights), leaves)
    for node, value in zip(graph.find_nodes(op="placeholder"), flat, strict=True):
        if not isinstance(value, torch.Tensor):
            node.meta["val"] = value  # torch 2.11 leaves it out
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo([*places, *keywords], spec, outputs[0])))
    accept_defaults(graph, source, {**dict(zip(places, example.args, strict=False)), **keywords})
    return describe(graph, _used(graph, {**state, **read_by(graph_module)}), how)


def aten_module(
    function: Callable[..., Any], inputs: tuple[Any, ...], mode: FakeTensorMode
) -> GraphModule:
    """``make_fx`` of ``function`` before dispatch, with nothing that mutates but buffers.

    Raises:
        CaptureError: it cannot be traced; the text quotes the line that stops it.
    """

    plain, parts = taken_apart(function, inputs)

    def trace(function: Callable[..., Any]) -> GraphModule:
        meta = torch.fx.traceback.preserve_node_meta()
        with (
            mode, meta, levels_closed(), no_fast_path(), flex_allowed(), constants_known(),
        ):  # fmt: skip
            return make_fx(
                function, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True
            )(*parts)

    try:
        traced = trace(plain)
        make_plain(traced.graph)
        write_flex(traced)
        if mutates(traced.graph, besides="placeholder"):
            # What follows may drop or move a node by its result alone.
            traced = trace(_functional(plain))
            write_flex(traced)
        put_together(traced.graph, inputs)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"make_fx cannot trace it: {blame(error)}") from error
    return traced


def _functional(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` without writes, but for what it leaves in its inputs: those come last."""

    def with_inputs(*inputs: Any) -> tuple[Any, list[Any]]:
        return function(*inputs), pytree.tree_leaves(inputs)

    def call(*inputs: Any) -> Any:
        mode = FunctionalTensorMode(pre_dispatch=True, export=True)
        outputs, left = dispatch_functionalize(with_inputs, mode)(*inputs)
        for given, value in zip(pytree.tree_leaves(inputs), left, strict=True):
            if isinstance(given, torch.Tensor) and value is not given:
                given.copy_(value)
        return outputs

    return call


def _bound(source: nn.Module, example: Example) -> tuple[list[str], dict[str, Any]]:
    """Names for what is given by place, and what is given by name, both as ``forward`` has them."""
    parameters = inspect.signature(source.forward).parameters
    try:
        given = inspect.signature(source.forward).bind(*example.args, **dict(example.kwargs))
    except TypeError as error:
        raise CaptureError(f"Its forward cannot be called with these inputs: {error}.") from error
    places: list[str] = []
    keywords: dict[str, Any] = {}
    for name, value in given.arguments.items():
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            places.extend(f"{name}_{i}" for i in range(len(value)))
        elif parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            keywords.update(value)
        elif name in example.kwargs:
            keywords[name] = value
        else:
            places.append(name)
    return places, keywords


def _leaf_names(names: list[str], values: Iterable[Any]) -> list[str]:
    """A name for each tensor or number in arguments with these names."""
    found: list[str] = []
    for name, value in zip(names, values, strict=True):
        leaves = len(pytree.tree_leaves(value))
        found.extend([name] if leaves == 1 else [f"{name}_{i}" for i in range(leaves)])
    return found


class _Runner(nn.Module):
    """Runs a graph module node by node, so that each traced op keeps its node's place."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        self.module = module
        self.graph = with_paths(module.graph)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given, named = list(args), dict(kwargs)
        bound: dict[Node, Any] = {}
        for node in self.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.target.startswith("**"):
                bound[node], named = named, {}
            elif node.target.startswith("*"):
                bound[node], given = tuple(given), []
            elif given:
                bound[node] = given.pop(0)
            elif node.target in named or node.args:
                bound[node] = named.pop(node.target, *node.args[:1])
        return _mutable(Interpreter(self.module, graph=self.graph).run(initial_env=bound))


def _mutable(value: Any) -> Any:
    """A graph's own immutable lists and dicts as the plain ones that the model returned."""
    if isinstance(value, list):
        return [_mutable(element) for element in value]
    if isinstance(value, dict):
        return {key: _mutable(element) for key, element in value.items()}
    return tuple(map(_mutable, value)) if type(value) is tuple else value


def _fake(mode: FakeTensorMode, value: Any, example: Example) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    dims = [DimDynamic.STATIC] * value.dim()
    if example.has_rows(value):
        dims[0] = DimDynamic.DYNAMIC
    return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dims))


def named_graph(traced: Graph, weights: list[str], inputs: list[str]) -> Graph:
    """The traced graph with weights read as attributes and inputs called by their names."""
    graph = Graph()
    placeholders = [node for node in traced.nodes if node.op == "placeholder"]
    names = dict(zip(placeholders, [*weights, *inputs], strict=True))
    read = set(placeholders[: len(weights)])
    copies: dict[Node, Node] = {}
    for node in traced.nodes:
        if node in read:
            if node.users:
                copies[node] = graph.get_attr(names[node])
                copies[node].meta = dict(node.meta)
        elif node in names:
            copies[node] = graph.placeholder(names[node])
            copies[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(torch.fx.node.map_arg(node.args[0], lambda n: copies[n]))
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return graph


def _used(graph: Graph, values: dict[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that the graph reads."""
    read = {node.target for node in graph.nodes if node.op == "get_attr"}
    return {name: value for name, value in values.items() if name in read}
