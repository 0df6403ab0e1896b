"""What a transform leaves in its program for whoever is given that later: that it merges."""

from __future__ import annotations

import os
from typing import Any

from torch.fx import Graph

from tome_fx import ops
from tome_fx.errors import AlreadyTransformedError

_KEY = "tome_fx"
_OPS = os.path.dirname(ops.__file__)
_MERGING = (ops.match, ops.match_metric, ops.match_keys, ops.merge, ops.merged_size)


def mark(graph: Graph, r: Any) -> None:
    """Note ``r`` on the merges of ``graph``.

    ``custom`` is what torch.export keeps of a node for those that are made of it, and what files
    keep. The ops themselves are gone there.
    """
    for node in graph.nodes:
        if node.target in _MERGING:
            node.meta["custom"] = {**node.meta.get("custom", {}), _KEY: f"r={r!r}"}


def refuse_marked(graph: Graph) -> None:
    """Raise AlreadyTransformedError where ``graph`` was made of one with marks."""
    for node in graph.nodes:
        known = (node.meta.get("custom") or {}).get(_KEY)
        if known is not None:
            raise AlreadyTransformedError(
                f"This program was made of a model that was transformed with {known}: it merges "
                "already. Transform the original model."
            )


def refuse_traced(graph: Graph) -> None:
    """As :func:`refuse_marked`, of a graph of Dynamo: it keeps nothing but the lines of code."""
    if any(_OPS in (node.meta.get("stack_trace") or "") for node in graph.nodes):
        raise AlreadyTransformedError(
            "It calls tome_fx.ops, as the result of a transform does: it merges already. Compile "
            "that by another backend, or the original model by this one."
        )
