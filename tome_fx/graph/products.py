"""Products of several operands, ``einsum("nd,de,n->ne", q, kv, z)``, as products of two in a row.

The pairs are those that the op itself takes: by its path, what comes out last, or from the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from tome_fx.graph.calls import bind

_EINSUM = torch.ops.aten.einsum.default


def in_pairs(node: Node) -> None:
    """Edit an ``einsum`` of more than two operands to one of two, with the others in front."""
    call = bind(node)
    before, arrow, after = str(call["equation"]).replace(" ", "").partition("->")
    terms, operands = before.split(","), list(call["tensors"])
    if not arrow or len(terms) != len(operands) or len(operands) < 3:
        return
    path = list(call.get("path") or ())
    order = path or [0, 1] * (len(operands) - 1)
    while len(operands) > 2:
        first, second = sorted((order.pop(0), order.pop(0)))
        names, pair = [terms[first], terms[second]], [operands[first], operands[second]]
        for row in (terms, operands):
            del row[second], row[first]
        kept = _kept(names, [*terms, after])
        equation = f"{','.join(names)}->{kept}"
        with node.graph.inserting_before(node):
            product = node.graph.call_function(_EINSUM, (equation, pair))
        value = _EINSUM(equation, [operand.meta["val"] for operand in pair])
        product.meta = {**node.meta, "val": value}
        place = len(operands) if path else 0
        operands.insert(place, product)
        terms.insert(place, kept)
    node.args, node.kwargs = (f"{','.join(terms)}->{after}", operands), {}


def _kept(names: Sequence[str], rest: Sequence[str]) -> str:
    """The letters of a pair that are read later, as they come; axes without a name first."""
    here, later = "".join(names), "".join(rest)
    dots = "..." if "..." in here and "..." in later else ""
    return dots + "".join(c for c in dict.fromkeys(here) if c != "." and c in later)
