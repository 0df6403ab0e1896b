"""Weights that are made of other tensors: what they hold is read there.

torch takes such a weight apart before it traces, and so does this; then a program has
``getattr(weight, "qdata")`` where a tensor of it is read. A weight that is loaded, moved or
assigned later has other tensors, and those are the ones that a result has to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from tome_fx.graph.calls import calls
from tome_fx.graph.insides import Way, at, built, is_made_of_others, ways


def reads_insides(graph: Graph) -> bool:
    """Does a program name a tensor that is inside of another, as torch.export writes it?"""
    return any(calls(node, ("export.access_subclass_inner_tensor",)) for node in graph.nodes)


def read_insides(module: GraphModule, exported: torch.export.ExportedProgram) -> None:
    """Let a decomposed program, which has each part under a name of its own, read the weights."""
    signature, held = exported.graph_signature, exported.state_dict | exported.constants
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    parts: dict[str, tuple[str, Any, Way]] = {}
    for name, path in (signature.inputs_to_parameters | signature.inputs_to_buffers).items():
        owner, dot, leaf = path.rpartition(".")
        if is_made_of_others(values[name]):
            for k, way in enumerate(ways(values[name])):
                part = f"{owner}{dot}parametrizations.{leaf}.original{k}"
                parts[part] = path, values[name], way
    graph = module.graph
    for node in graph.find_nodes(op="get_attr"):
        if node.target not in parts:
            continue
        path, value, way = parts[node.target]
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, held[path])
        with graph.inserting_before(node):
            whole = graph.create_node("get_attr", path)
            _read(node, whole, value, way)


def taken_apart(
    function: Callable[..., Any], inputs: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``function`` of the plain tensors in ``inputs``, and those; all as it is where all are."""
    leaves, spec = pytree.tree_flatten(inputs)
    if not any(map(is_made_of_others, leaves)):
        return function, inputs

    def of_parts(*parts: Any) -> Any:
        left, seen = iter(parts), dict[int, Any]()
        # What has two names stays one object.
        whole = [seen.setdefault(id(leaf), built(leaf, left)) for leaf in leaves]
        return function(*pytree.tree_unflatten(whole, spec))

    return of_parts, tuple(at(leaf, way) for leaf in leaves for way in ways(leaf))


def put_together(graph: Graph, inputs: tuple[Any, ...]) -> None:
    """Give a graph of what was taken apart the tensors in ``inputs`` for its placeholders."""
    leaves = pytree.tree_leaves(inputs)
    if not any(map(is_made_of_others, leaves)):
        return
    placeholders = graph.find_nodes(op="placeholder")
    behind, left = placeholders[-1].next, iter(placeholders)
    for leaf in leaves:
        nodes = [(next(left), way) for way in ways(leaf)]
        if not is_made_of_others(leaf):
            continue
        with graph.inserting_before(nodes[0][0]):
            whole = graph.placeholder(nodes[0][0].name)
        for node, way in nodes:
            with graph.inserting_before(behind):
                _read(node, whole, leaf, way)


def _read(node: Node, whole: Node, value: Any, way: Way) -> None:
    """Put what is read off ``whole`` in the place of ``node``, here."""
    found = whole
    for name in way:
        found.meta["val"] = value
        found, value = node.graph.call_function(getattr, (found, name)), getattr(value, name)
    found.meta = dict(node.meta)
    node.replace_all_uses_with(found)
    node.graph.erase_node(node)
