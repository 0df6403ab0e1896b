"""What is said where a program has no attention that tokens could merge behind."""

from __future__ import annotations

import torch
from torch.fx import Node

from tome_fx.graph.calls import calls
from tome_fx.graph.kernels import kernel_name
from tome_fx.graph.provenance import module_path, source_line
from tome_fx.graph.softmaxes import SOFTMAXES
from tome_fx.program import Findings, Program


def nothing_found(program: Program, findings: Findings) -> str:
    """What came near and why it is none, what the program holds, and what to do."""
    text = "No self-attention over tokens with a residual add was found."
    found: dict[str, list[Node]] = {}
    for miss in findings.misses:
        found.setdefault(miss.reason, []).append(miss.node)
    for reason, nodes in sorted(found.items(), key=lambda item: -len(item[1]))[:3]:
        text += f" {_several(nodes)}: {reason}."
    others = [node for node in program.graph.nodes if calls(node, SOFTMAXES)]
    if others and not found:
        text += f" {_several(others)}: it is not of a product of queries and keys."
    text += f" The program holds {_counted(program)}."
    kernels = sorted({name for node in program.graph.nodes if (name := kernel_name(node))})
    if kernels:
        return (
            f"{text} Not read as attention, for what is asked of it or as nothing is known of it: "
            f"{', '.join(kernels)}. Let the model call torch.nn.functional."
            'scaled_dot_product_attention, in transformers by attn_implementation="sdpa".'
        )
    return (
        f"{text} Token merging needs attention of tokens to each other, fused or by a softmax of "
        "products, and a residual add behind it."
    )


def _several(nodes: list[Node]) -> str:
    """The first of them, where it stands, and how many more there are."""
    first, *more = nodes
    path, line = module_path(first), source_line(first)
    where = f" at {path}" if path else ""
    where += f" ({line})" if line else ""
    return f"{first.name}{where}{f' and {len(more)} more' if more else ''}"


def _counted(program: Program) -> str:
    """The ops that there are most of."""
    kinds: dict[str, int] = {}
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target._schema.name.replace("aten::", "")
            kinds[name] = kinds.get(name, 0) + 1
    common = sorted(kinds, key=lambda name: -kinds[name])[:5]
    return ", ".join(f"{kinds[name]} {name}" for name in common)
