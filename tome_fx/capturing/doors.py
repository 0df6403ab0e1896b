"""The front doors of capture, each a way to the same kind of graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from tome_fx.capturing.blame import blame
from tome_fx.capturing.examples import Example
from tome_fx.errors import CaptureError
from tome_fx.graph.extents import Extents
from tome_fx.graph.inplace import make_plain
from tome_fx.program import Program


def from_export(model: nn.Module, example: Example) -> Program:
    """``torch.export``, non-strict, batch dynamic wherever the model allows it.

    ``nn.MultiheadAttention``'s fast path is off meanwhile: it is one op that hides the attention.
    """
    dynamic = torch.export.Dim.AUTO

    def spec(value: Any) -> Any:
        batched = (
            isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == example.batch
        )
        return {0: dynamic} if batched else None

    shapes = pytree.tree_map(spec, (example.args, dict(example.kwargs)))
    try:
        with _no_fast_path():
            exported = torch.export.export(
                model,
                example.args,
                dict(example.kwargs),
                dynamic_shapes=_named_shapes(model, shapes),
                strict=False,
            )
    except Exception as error:
        raise CaptureError(f"torch.export cannot capture it: {blame(error)}") from error
    return from_exported_program(exported)


def _named_shapes(model: nn.Module, shapes: Any) -> Any:
    """``dynamic_shapes`` as export wants it: by the names of the parameters of ``forward``."""
    args, kwargs = shapes
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def from_exported_program(exported: torch.export.ExportedProgram) -> Program:
    """The program's own graph with its parameters as attributes, made functional."""
    if _mutates(exported.graph):
        exported = exported.run_decompositions({})
    module = exported.module()
    assert isinstance(module, GraphModule)
    return describe(module.graph, _read(module), "export")


def from_graph_module(
    traced: GraphModule, source: nn.Module, example: Example, how: str
) -> Program:
    """``make_fx`` through a traced module, with its parameters named as in ``source``."""
    state = {
        **dict(traced.named_parameters(remove_duplicate=False)),
        **dict(traced.named_buffers(remove_duplicate=False)),
    }
    given = _bound(source, example)
    keywords = {name: value for name, value in given.items() if name in example.kwargs}
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    flat, spec = pytree.tree_flatten((example.args, keywords))
    fakes = [_fake(mode, value, example.batch) for value in flat]
    weights = {name: mode.from_tensor(value, static_shapes=True) for name, value in state.items()}
    runner = _Runner(traced)

    def call(weights: dict[str, torch.Tensor], *inputs: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(list(inputs), spec)
        named = {f"module.{name}": value for name, value in weights.items()}
        return torch.func.functional_call(runner, named, args, kwargs)

    outputs: list[Any] = []

    def flat_call(weights: dict[str, torch.Tensor], *inputs: Any) -> Any:
        leaves, out_spec = pytree.tree_flatten(call(weights, *inputs))
        outputs.append(out_spec)
        return leaves

    def trace(function: Callable[..., Any]) -> GraphModule:
        with mode, torch.fx.traceback.preserve_node_meta(), _no_fast_path():
            return make_fx(
                function, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True
            )(weights, *fakes)

    try:
        graph_module = trace(flat_call)
        make_plain(graph_module.graph)
        if _mutates(graph_module.graph, besides="placeholder"):
            # What follows may drop or move a node by its result alone.
            functional = FunctionalTensorMode(pre_dispatch=True, export=True)
            graph_module = trace(dispatch_functionalize(flat_call, functional))
    except Exception as error:
        raise CaptureError(f"make_fx cannot trace it: {blame(error)}") from error
    names = _input_names(source, example)
    graph = _named_graph(graph_module.graph, list(weights), names)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, spec, outputs[0])))
    return describe(graph, _used(graph, {**state, **_read(graph_module)}), how)


def _bound(source: nn.Module, example: Example) -> dict[str, Any]:
    """What each parameter of ``forward`` is given."""
    signature = inspect.signature(source.forward)
    try:
        return dict(signature.bind(*example.args, **dict(example.kwargs)).arguments)
    except TypeError as error:
        raise CaptureError(f"Its forward cannot be called with these inputs: {error}.") from error


class _Runner(nn.Module):
    """Runs a graph module node by node, so that each traced op keeps its node's place."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        bound = list(args)
        for node in inputs[len(args) :]:
            if node.target not in kwargs and not node.args:
                break
            bound.append(kwargs.get(node.target, node.args[0] if node.args else None))
        return _mutable(Interpreter(self.module).run(*bound))


def _mutable(value: Any) -> Any:
    """A graph's own immutable lists and dicts as the plain ones that the model returned."""
    if isinstance(value, list):
        return [_mutable(element) for element in value]
    if isinstance(value, dict):
        return {key: _mutable(element) for key, element in value.items()}
    return tuple(map(_mutable, value)) if type(value) is tuple else value


def _fake(mode: FakeTensorMode, value: Any, batch: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    dims = [DimDynamic.STATIC] * value.dim()
    if value.dim() and value.shape[0] == batch:
        dims[0] = DimDynamic.DYNAMIC
    return mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dims))


def _named_graph(traced: Graph, weights: list[str], inputs: list[str]) -> Graph:
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


def _read(module: GraphModule) -> dict[str, Any]:
    """What the graph of ``module`` reads, by path."""
    found = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for name in node.target.split("."):
                value = getattr(value, name)
            found[node.target] = value
    return found


def _input_names(source: nn.Module, example: Example) -> list[str]:
    names: list[str] = []
    for name, value in _bound(source, example).items():
        leaves = pytree.tree_leaves(value)
        names.extend([name] if len(leaves) == 1 else [f"{name}_{i}" for i in range(len(leaves))])
    return names


def describe(graph: Graph, constants: dict[str, Any], how: str) -> Program:
    """Read the batch axis off the inputs of a captured graph."""
    extents = Extents()
    images = [node for node in graph.nodes if node.op == "placeholder"]
    first = next((node for node in images if _rank(node) > 1), None)
    if first is None:
        raise CaptureError(
            "The captured program has no tensor input with a batch axis. "
            "Pass example_inputs with the batch on the first axis."
        )
    size = first.meta["val"].shape[0]
    if isinstance(size, int) and size == 1:
        raise CaptureError(
            "The program was exported with a batch of 1, which is a constant in it. Export it with "
            "a dynamic batch (dynamic_shapes), or with an example of 2 images or more."
        )
    batched = frozenset(n.name for n in images if _rank(n) > 0 and _same(n, size))
    static = isinstance(size, int)
    return Program(graph, constants, how, extents, extents.of(size), batched, static)


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _same(node: Node, size: Any) -> bool:
    own = node.meta["val"].shape[0]
    return type(own) is type(size) and (
        own == size if isinstance(size, int) else own.node.expr == size.node.expr
    )


def _mutates(graph: Graph, besides: str = "") -> bool:
    """Does any op write to one of its arguments, ``besides`` to a node of that kind?

    Buffers that a program counts in (of a batch norm, say) are written to by intent.
    """
    return any(
        isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and not (isinstance(node.args[0], Node) and node.args[0].op == besides)
        for node in graph.nodes
    )


@contextmanager
def _no_fast_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
