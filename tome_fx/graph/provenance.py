"""Where a node comes from: the module path and the source line. For people, never for decisions."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any

from torch import nn
from torch.fx import Graph, Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<text>[^\n]*)')


def origin_of(node: Node) -> dict[str, Any]:
    """Where a node comes from, for the ``meta`` of one that takes its place."""
    return {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}


def module_path(node: Node) -> str:
    """``blocks.3.attn``, or an empty text at the top level or where it is not known."""
    paths = module_paths(node)
    return paths[-1] if paths else ""


def module_paths(node: Node) -> tuple[str, ...]:
    """``blocks``, ``blocks.3`` and ``blocks.3.attn``: the modules around it, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = (str(entry[0]) for entry in stack.values() if isinstance(entry, tuple))
    return tuple(re.sub(r"^L__self___?|^L\['self'\]\.?", "", path) for path in paths)


def source_line(node: Node) -> str:
    """``attention.py:124: x = softmax(...)`` of the innermost frame, or an empty text."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    if not frames:
        return ""
    written = [frame for frame in frames if not frame["file"].startswith("<")]  # not generated
    last = (written or frames)[-1]
    return f"{os.path.basename(last['file'])}:{last['line']}: {last['text'].strip()}"


def common_path(nodes: Sequence[Node]) -> str:
    """The module path that all nodes share."""
    shared: list[str] = []
    for names in zip(*(module_path(node).split(".") for node in nodes), strict=False):
        if len(set(names)) != 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def holding(nodes: Sequence[Node], but: Node) -> str:
    """The outermost module whose call holds all nodes and not that one; an empty text if none."""
    around = [module_paths(node) for node in nodes]
    shared = (path for path in around[0] if all(path in paths for paths in around))
    return next((path for path in shared if path and path not in module_paths(but)), "")


def with_paths(graph: Graph) -> Graph:
    """A copy in which nodes tell their modules, also where whoever made the graph lost that.

    A call is in the module that it calls; what stands between two calls, where both of them are.
    """
    copied = copy.deepcopy(graph)
    nodes = list(copied.nodes)
    if any("nn_module_stack" in node.meta for node in nodes):
        return copied
    calls = [i for i, node in enumerate(nodes) if node.op == "call_module"]
    for before, after in pairwise(calls):
        _place(nodes[before], nodes[before].target.split("."))
        pair = zip(*(nodes[i].target.split(".") for i in (before, after)), strict=False)
        shared = [one for one, _ in takewhile(lambda names: names[0] == names[1], pair)]
        for node in nodes[before + 1 : after]:
            _place(node, shared)
    for last in calls[-1:]:
        _place(nodes[last], nodes[last].target.split("."))
    return copied


def _place(node: Node, parts: list[str]) -> None:
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    node.meta["nn_module_stack"] = {path: (path, nn.Module) for path in paths}
