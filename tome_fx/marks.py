"""What a transform leaves in its program for whoever is given that later: that it merges."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph

from tome_fx import ops
from tome_fx.errors import AlreadyTransformedError

_KEY = "tome_fx"
_MERGING = (ops.match, ops.match_metric, ops.match_keys, ops.merge, ops.merged_size)
# As generated code spells them: what a trace through a wrapper, or of Dynamo, keeps is its lines.
_SPELLED = tuple(f"{op.__module__}.{op.__name__}(".replace(".", "_") for op in _MERGING)


def mark(graph: Graph, r: Any) -> None:
    """Note ``r`` on the merges of ``graph``.

    ``custom`` is what torch.export keeps of a node for those that are made of it, and what files
    keep. The ops themselves are gone there.
    """
    for node in graph.nodes:
        if node.target in _MERGING:
            node.meta["custom"] = {**node.meta.get("custom", {}), _KEY: f"r={r!r}"}


def refuse_marked(graph: Graph) -> None:
    """Raise AlreadyTransformedError where ``graph`` was made of one that merges."""
    for node in graph.nodes:
        known = (node.meta.get("custom") or {}).get(_KEY)
        lines = node.meta.get("stack_trace") or ""
        if known is not None or any(op in lines for op in _SPELLED):
            told = f" with {known}" if known is not None else ""
            raise AlreadyTransformedError(
                f"This program was made of a model that was transformed{told}: it merges already. "
                "Transform the original model."
            )
