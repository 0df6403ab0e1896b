"""Einsums spelled as what rules read: moves of axes, and products of two operands.

    einsum("bhnd->bnhd", x)            -> permute(x, [0, 2, 1, 3])
    einsum("bnc->bc", x)               -> sum(x, [1])
    einsum("nd,de,n->ne", q, kv, z)    -> einsum("ne,n->ne", einsum("nd,de->ne", q, kv), z)

The pairs are those that the op itself takes, and the axes of a product stand as it has them: by its
path, what comes out last, or from the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from tome_fx.graph.calls import bind

aten = torch.ops.aten


def read_einsum(node: Node) -> None:
    """Edit an ``einsum`` so; one that is neither stays as it is."""
    call = bind(node)
    before, arrow, after = str(call["equation"]).replace(" ", "").partition("->")
    terms, operands = before.split(","), list(call["tensors"])
    if not arrow or len(terms) != len(operands):
        return
    if len(operands) == 1:
        _move(node, operands[0], before, after)
    elif len(operands) > 2:
        _multiply(node, operands, terms, after, list(call.get("path") or ()))


def _move(node: Node, source: Node, before: str, after: str) -> None:
    """One operand, whose axes move or are summed."""
    spare = source.meta["val"].dim() - len(before.replace("...", ""))
    dots = "".join(chr(0x100 + i) for i in range(spare))
    before, after = before.replace("...", dots), after.replace("...", dots)
    once = len(set(before)) == len(before) and set(after) <= set(before)
    if not once or len(set(after)) != len(after):
        return
    summed = [place for place, letter in enumerate(before) if letter not in after]
    left = [letter for letter in before if letter in after]
    order = [left.index(letter) for letter in after]
    if summed:
        with node.graph.inserting_before(node):
            total = node.graph.call_function(aten.sum.dim_IntList, (source, summed))
        total.meta = {**node.meta, "val": source.meta["val"].sum(summed)}
        source = total
    node.target, node.args, node.kwargs = aten.permute.default, (source, order), {}


def _multiply(
    node: Node, operands: list[Node], terms: list[str], after: str, path: list[int]
) -> None:
    """More than two operands: one product of two, with the others in front."""
    order = path or [0, 1] * (len(operands) - 1)
    while len(operands) > 2:
        first, second = sorted((order.pop(0), order.pop(0)))
        names, pair = [terms[first], terms[second]], [operands[first], operands[second]]
        for row in (terms, operands):
            del row[second], row[first]
        kept = _kept(names, [*terms, after])
        equation = f"{','.join(names)}->{kept}"
        with node.graph.inserting_before(node):
            product = node.graph.call_function(aten.einsum.default, (equation, pair))
        value = aten.einsum.default(equation, [operand.meta["val"] for operand in pair])
        product.meta = {**node.meta, "val": value}
        place = len(operands) if path else 0
        operands.insert(place, product)
        terms.insert(place, kept)
    node.args, node.kwargs = (f"{','.join(terms)}->{after}", operands), {}


def _kept(names: Sequence[str], rest: Sequence[str]) -> str:
    """The letters of a pair that are read later, in the op's own order: as they come out, by name.

    ``rest`` ends with what comes out of the whole.
    """
    here, later, after = "".join(names), "".join(rest), rest[-1].replace("...", ".")
    kept = {c for c in here if c in later}
    order = [*after, *sorted(kept - set(after))]
    return "".join("..." if c == "." else c for c in order if c in kept)
