"""Regions that an exported program keeps apart: ``no_grad``, ``enable_grad``, autocast."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from tome_fx.errors import CaptureError, warn
from tome_fx.graph.calls import writes
from tome_fx.graph.casts import held_in
from tome_fx.graph.idle import handed_on
from tome_fx.graph.provenance import source_line

_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_GRADIENTS = "wrap_with_set_grad_enabled"
_NONE: Mapping[Node, Node] = MappingProxyType({})
_NAMES = (_GRADIENTS, "wrap_with_autocast")


def is_mapped(graph: Graph) -> bool:
    """Does a part of a graph run under ``torch.vmap``, on values without the axis that it maps?"""
    # What opens such a part is read by nobody; once regions are inlined it is gone.
    return any(getattr(node.target, "__name__", "") == "_add_batch_dim" for node in graph.nodes)


def has_regions(graph: Graph) -> bool:
    """Does the graph call subprograms under another mode?"""
    return any(_name(node) in _NAMES for node in graph.nodes)


def inline_regions(module: GraphModule) -> None:
    """Put the nodes of each region of another mode in its place.

    What leaves a region without gradients is detached: nothing flows back into it. Autocast is
    switched before a region and back behind it, since it is another one around the program that
    decides what a switch changes.
    """
    waiting = [node for node in module.graph.nodes if _name(node) in _NAMES]
    while waiting:  # a region may hold others
        _inline(module, waiting.pop())
        waiting = waiting or [node for node in module.graph.nodes if _name(node) in _NAMES]
    module.graph.eliminate_dead_code()
    module.graph.lint()


def inline_gradient_regions(module: GraphModule, held: Set[str]) -> None:
    """Put the nodes of regions without gradients in their place, in all parts of a program.

    What comes into such a region is detached, so that nothing flows back out of a buffer that is
    written to inside of it either; what it reads by the names ``held`` has no gradient anyhow.
    """
    for part in list(module.modules()):
        if not isinstance(part, GraphModule):
            continue
        while waiting := [node for node in part.graph.nodes if _name(node) == _GRADIENTS]:
            for node in waiting:
                off = not node.args[0]
                given = _detach_operands(part.graph, node, held) if off else {}
                inner = node.args[1]
                assert isinstance(inner, Node)
                if off:
                    _warn_of_writes(node, part.get_submodule(str(inner.target)), given)
                _inline(part, node, given)
                if not inner.users:  # all else stays: what opens a part under vmap has no users
                    part.graph.erase_node(inner)
        part.recompile()


def _detach_operands(graph: Graph, region: Node, held: Set[str]) -> dict[Node, Node]:
    """The operands by what a region gets in their place."""
    given: dict[Node, Node] = {}
    for operand in dict.fromkeys(region.args[2:]):
        if isinstance(operand, Node) and operand.name not in held and _may_require_grad(operand):
            with graph.inserting_before(region):
                free = _detached(graph, operand)
            region.replace_input_with(operand, free)
            given[free] = operand
    return given


def _warn_of_writes(region: Node, inner: Any, given: Mapping[Node, Node]) -> None:
    """Say so where a region writes to a value with gradients: the model's own flow on."""
    held = held_in(inner.graph)
    places = inner.graph.find_nodes(op="placeholder")
    for place, operand in zip(places, region.args[2:], strict=True):
        lines = [
            source_line(node)
            for node in inner.graph.nodes
            if writes(node) and any(place in held[n] for n in node.all_input_nodes[:1])
        ]
        if lines and isinstance(operand, Node) and given.get(operand, place).op == "call_function":
            warn(
                f"The model writes to a value without recording it for gradients ({lines[0]}): its "
                "own flow through that value as if nothing had been written, and in the result "
                "none flow back through it. Train it with a new value in place of the write.",
            )


def flatten_gradient_regions(graph: Graph) -> None:
    """The same for regions that are marked by calls that switch gradients off and on.

    Raises:
        CaptureError: gradients are off around the graph, and a region of it switches them on.
    """
    switches = [node for node in graph.nodes if node.target is torch._C._set_grad_enabled]
    if not switches:
        return
    if not torch.is_grad_enabled() and any(node.args[0] for node in switches):
        raise CaptureError("A region of it switches gradients on, inside of no_grad around it.")
    inside: set[Node] = set()
    enabled = True
    for node in graph.nodes:
        if node in switches:
            enabled = bool(node.args[0])
        elif not enabled:
            inside.add(node)
    for node in inside:
        outside = [user for user in node.users if user not in inside]
        source = handed_on(node)
        if source not in inside:
            for user in outside:
                user.replace_input_with(node, source)
        elif outside and _may_require_grad(node):
            with graph.inserting_after(node):
                free = _detached(graph, node)
            for user in outside:
                user.replace_input_with(node, free)
    for node in switches:
        graph.erase_node(node)


def _may_require_grad(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _inline(module: GraphModule, node: Node, given: Mapping[Node, Node] = _NONE) -> None:
    """Put a region in its place; what it hands on of ``given`` leaves it as what that was."""
    gradients = _name(node) == _GRADIENTS
    state, target, operands = _taken_apart(node)
    inner: Any = module.get_submodule(str(target.target))
    graph = _detached_inside(inner) if gradients and not state[0] else inner.graph
    copies: dict[Node, Any] = {}
    inputs = iter(operands)
    results: Any = ()
    with module.graph.inserting_before(node):
        switch = None if gradients else module.graph.call_function(_ENTER, state)
        for own in graph.nodes:
            if own.op == "placeholder":
                copies[own] = next(inputs)
            elif own.op == "output":
                results = map_arg(own.args[0], lambda n: given.get(copies[n], copies[n]))
            elif own.op == "get_attr":
                path = f"{target.target}_{own.target}".replace(".", "_")
                module.add_module(path, inner.get_submodule(str(own.target)))
                copies[own] = module.graph.get_attr(path)
            else:
                copies[own] = module.graph.node_copy(own, lambda n: copies[n])
        if switch is not None:
            module.graph.call_function(_EXIT, (switch,))
    row = results if isinstance(results, (list, tuple)) else (results,)
    for user in list(node.users):
        index: Any = user.args[1]
        user.replace_all_uses_with(row[index])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _taken_apart(region: Node) -> tuple[tuple[Any, ...], Node, list[Any]]:
    """The mode of a region, what reads its subprogram, and what that gets."""
    modes = 1 if _name(region) == _GRADIENTS else 4
    target, *operands = region.args[modes:]
    assert isinstance(target, Node)
    return region.args[:modes], target, operands


def _detached_inside(inner: GraphModule) -> Graph:
    """A subprogram without gradients, with what it computes detached where that leaves it.

    It leaves for the caller, or for a part of its own that has gradients: what that makes keeps
    them, and so does what comes in and is handed on.
    """
    graph = Graph()
    graph.output(graph.graph_copy(inner.graph, {}))
    parts = [n for n in graph.nodes if _name(n) == _GRADIENTS and n.args[0]]
    made = {user for part in parts for user in part.users}
    for reader in [*parts, *graph.find_nodes(op="output")]:
        for node in reader.all_input_nodes:
            source = _handed_on(node, inner)
            if source.op == "placeholder" or source in made:
                reader.replace_input_with(node, source)
            elif node.op == "call_function" and _may_require_grad(node):
                with graph.inserting_after(node):
                    reader.replace_input_with(node, _detached(graph, node))
    return graph


def _handed_on(node: Node, module: GraphModule) -> Node:
    """What a value is, before calls and regions of ``module`` that hand it on."""
    while True:
        node = handed_on(node)
        region = node.args[0] if node.target is operator.getitem else None
        if not isinstance(region, Node) or _name(region) not in _NAMES:
            return node
        _, part, operands = _taken_apart(region)
        inner: Any = module.get_submodule(str(part.target))
        results: Any = inner.graph.find_nodes(op="output")[0].args[0]
        index: Any = node.args[1]
        source = _handed_on(results[index], inner)
        places = inner.graph.find_nodes(op="placeholder")
        if source not in places:
            return node
        node = operands[places.index(source)]


def _detached(graph: Graph, node: Node) -> Node:
    new = graph.call_function(torch.ops.aten.detach.default, (node,))
    new.meta = dict(node.meta)
    return new


def _name(node: Node) -> str:
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""
