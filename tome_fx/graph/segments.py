"""Gradient checkpointing of a graph: its blocks as segments that are run again in backward.

    x1 = add(x, mlp)                  x1, size1 = checkpoint(segment_1, x, size, w, b)
    ... block 1 ...             ->    x2, size2 = checkpoint(segment_2, x1, size1, w2, b2)
    x2 = add(x1, mlp1)

A segment may begin anywhere, so it begins where the least is alive: between two attentions of a
Vision Transformer that is the stream itself. Weights are inputs of a segment, since whoever trains
may replace them (casts, ``functional_call``).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

PREFIX = "_segment_"
# Run twice, they would count a batch twice.
_COUNTING = ("batch_norm", "instance_norm")


def segment(module: GraphModule, anchors: Sequence[Node]) -> int:
    """Checkpoint ``module.graph`` in segments that hold one of ``anchors`` each; returns how many.

    Nodes need their values in ``meta``.
    """
    nodes = list(module.graph.nodes)
    places = sorted(nodes.index(anchor) for anchor in set(anchors) & set(nodes))
    if not places:
        return 0
    borders = _borders(nodes, places)
    made = 0
    for start, end in itertools.pairwise(borders):
        inside = [node for node in nodes[start:end] if node.op != "get_attr"]
        if inside and not any(map(_counts, inside)):
            _wrap(module, inside, f"{PREFIX}{made}")
            made += 1
    module.graph.lint()
    module.recompile()
    return made


def forget_segments(module: GraphModule) -> None:
    """Remove what :func:`segment` put on ``module``."""
    for name in [name for name in module._modules if name.startswith(PREFIX)]:
        delattr(module, name)


def _borders(nodes: list[Node], places: list[int]) -> list[int]:
    """Where segments begin and end: before, between and behind the anchors, with least alive."""
    alive = _alive(nodes)
    first = max(i for i, node in enumerate(nodes) if node.op == "placeholder") + 1
    behind = range(places[-1] + 1, len(nodes))
    # A program writes its counts to their buffers at its end.
    last = next(i for i in behind if nodes[i].op == "output" or _counts(nodes[i]))
    cuts = [(first, places[0])]
    cuts += [(a + 1, b) for a, b in itertools.pairwise(places)]
    cuts.append((places[-1] + 1, last))
    # Of equal ones the last, so that a segment begins right before its first use of the stream.
    return [min(range(a, b + 1), key=lambda i: (alive[i], -i)) for a, b in cuts]


def _alive(nodes: list[Node]) -> list[float]:
    """Bytes made before each place and read at or behind it; infinite where none may be."""
    order = {node: i for i, node in enumerate(nodes)}
    alive, depth = [0.0] * (len(nodes) + 1), 0
    for i, node in enumerate(nodes):
        depth += "enter_autocast" in str(node.target)
        depth -= "exit_autocast" in str(node.target)
        if depth:
            alive[i + 1] = float("inf")
        if node.op == "get_attr" or not node.users:
            continue
        for place in range(i + 1, max(order[user] for user in node.users) + 1):
            alive[place] += _bytes(node)
    return alive


def _bytes(node: Node) -> int:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return sum(v.numel() * v.element_size() for v in leaves if isinstance(v, torch.Tensor))


def _counts(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return (schema is not None and schema.is_mutable) or any(
        name in str(node.target) for name in _COUNTING
    )


def _wrap(module: GraphModule, inside: list[Node], name: str) -> None:
    """Replace ``inside``, neighbours in the graph but for weights, by a checkpointed call."""
    graph, own = module.graph, set(inside)
    given = list(dict.fromkeys(n for node in inside for n in node.all_input_nodes if n not in own))
    taken = [node for node in inside if any(user not in own for user in node.users)]
    inner = Graph()
    copies = {node: inner.placeholder(node.name) for node in given}
    for node, copy in copies.items():
        copy.meta = dict(node.meta)
    for node in inside:
        copies[node] = inner.node_copy(node, lambda n: copies[n])
    inner.output(tuple(copies[node] for node in taken))
    # Without parameters of its own, it adds nothing to the state of the module.
    module.add_module(name, GraphModule(torch.nn.Module(), inner, "Segment"))
    # Behind the last of them all weights that they read have been read.
    with graph.inserting_after(inside[-1]):
        held = graph.get_attr(name)
    with graph.inserting_after(held):
        call = graph.call_function(checkpoint, (held, *given), {"use_reentrant": False})
    last = call
    for i, node in enumerate(taken):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (call, i))
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in own)
    for node in reversed(inside):
        graph.erase_node(node)
