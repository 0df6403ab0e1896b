"""Where a node comes from: the module path and the source line. For people, never for decisions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

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
    last = frames[-1]
    return f"{os.path.basename(last['file'])}:{last['line']}: {last['text'].strip()}"


def common_path(nodes: Sequence[Node]) -> str:
    """The module path that all nodes share."""
    shared: list[str] = []
    for names in zip(*(module_path(node).split(".") for node in nodes), strict=False):
        if len(set(names)) != 1:
            break
        shared.append(names[0])
    return ".".join(shared)
