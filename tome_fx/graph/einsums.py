"""Einsums spelled as what rules read: moves of axes, and products of two operands.

    einsum("bhnd->bnhd", x)        -> permute(x, [0, 2, 1, 3])
    einsum("ab,bc,cd->ad", x, y, z) -> einsum("cd,ac->ad", z, einsum("ab,bc->ac", x, y))

Several operands are multiplied in pairs, in the order that torch multiplies them in.
"""

from __future__ import annotations

import torch
from torch.fx import Node

aten = torch.ops.aten


def read_einsum(node: Node) -> None:
    """Spell one einsum so; what is none of the two stays."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if not isinstance(operands, (list, tuple)):
        return
    nodes = [operand for operand in operands if isinstance(operand, Node)]
    before, arrow, after = equation.partition("->")
    if len(nodes) == 1 and arrow:
        _move(node, nodes[0], before, after)
    elif len(nodes) > 2 and arrow and "..." not in before:
        _multiply(node, nodes, before.split(","), after)


def _move(node: Node, source: Node, before: str, after: str) -> None:
    """An einsum of one operand that only moves its axes."""
    spare = source.meta["val"].dim() - len(before.replace("...", ""))
    dots = "".join(chr(0x100 + i) for i in range(spare))
    before, after = before.replace("...", dots), after.replace("...", dots)
    if sorted(before) == sorted(after) and len(set(before)) == len(before):
        order = [before.index(letter) for letter in after]
        node.target, node.args, node.kwargs = aten.permute.default, (source, order), {}


def _multiply(node: Node, nodes: list[Node], terms: list[str], after: str) -> None:
    """An einsum of several operands; each pair keeps the letters that somebody still reads."""
    if any(len(set(term)) != len(term) for term in terms):
        return
    path = list(node.kwargs.get("path") or ())
    while len(nodes) > 1:
        first, second = sorted((path.pop(0), path.pop(0))) if path else (0, 1)
        pair = (nodes[first], nodes[second])
        names = (terms[first], terms[second])
        for row in (nodes, terms):
            del row[second], row[first]
        read = after + "".join(terms)
        kept = "".join(c for c in dict.fromkeys("".join(names)) if c in read) if nodes else after
        equation = f"{names[0]},{names[1]}->{kept}"
        if not nodes:
            node.args, node.kwargs = (equation, list(pair)), {}
            return
        with node.graph.inserting_before(node):
            product = node.graph.call_function(aten.einsum.default, (equation, list(pair)))
        values = [operand.meta["val"] for operand in pair]
        product.meta = {**node.meta, "val": torch.einsum(equation, *values)}
        nodes.append(product)
        terms.append(kept)
