"""Attention that shows a token only those before it, by a mask of the model or the example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tome_fx.finding.masks import all_masks_of, kind_of
from tome_fx.finding.telling import known_value
from tome_fx.graph.calls import Call, bind, calls
from tome_fx.graph.cones import cones_of
from tome_fx.ops.padding import HIDDEN
from tome_fx.program import Core, Miss, Program, Site

# Weights of keys stay such behind these.
_WEIGHING = ("aten.mul", "aten.masked_fill", "aten.where", "aten.div", "aten.dropout", "aten.to",
             "aten._to_copy")  # fmt: skip
_FOLLOWS = "a causal attention follows: a merged token has no place in its order"


def is_causal(core: Core, program: Program) -> bool:
    """Does a mask, or a part of one, hide from each token all that follow it?

    Read where the model makes it without images, or from an input as the example has it.
    """
    if core.kind == "inner" and bind(core.node).get("is_causal"):
        return True
    for node, hides, own in all_masks_of(core):
        value = known_value(node, program) if own > 1 else None
        if value is not None and _is_triangle(value, hides):
            return True
    kind = kind_of(core)
    if kind == "softmax":
        return any(map(_is_one_sided, _factors_behind(core, program)))
    return kind == "weights" and any(map(_is_one_sided, _tables(core, program)))


def _factors_behind(core: Core, program: Program) -> Iterator[Tensor]:
    """What no image has a part in that all weights are multiplied by, or made 0 where it is."""
    node = core.node
    while len(node.users) == 1:
        (user,) = node.users
        if not calls(user, _WEIGHING) or not _leaves_nothing(bind(user), node, program):
            return
        for other in user.all_input_nodes if not calls(user, ("aten.div",)) else ():
            value = None if other is node else known_value(other, program)
            if value is not None:
                yield value
        node = user


def _leaves_nothing(call: Call, weights: Node, program: Program) -> bool:
    """Is what a call gives of weights nothing but a share of them?"""
    if call.name == "aten.masked_fill":
        return call["self"] is weights and _is_zero(call["value"], program)
    if call.name == "aten.where":
        return any(_is_zero(call[name], program) for name in ("self", "other"))
    return True


def _is_zero(value: Any, program: Program) -> bool:
    known = known_value(value, program) if isinstance(value, Node) else value
    return known is not None and bool((torch.as_tensor(known) == 0).all())


def _tables(core: Core, program: Program) -> Iterator[Tensor]:
    """What no image has a part in between the product that makes weights and what they are.

    Weights that no softmax made can be hidden by a factor too, at any step.
    """
    made_of = cones_of(program.graph)
    waiting, seen = [core.node], {core.node}
    while waiting:
        node = waiting.pop()
        value = known_value(node, program)
        if value is not None:
            yield value
            continue
        for before in node.all_input_nodes:
            # A table that the queries are made of too is one of an earlier attention, used again.
            above = before in program.of_images and made_of.depends(core.query, before)
            if before not in seen and before is not core.key and not above:
                seen.add(before)
                waiting.append(before)


def _is_one_sided(table: Tensor) -> bool:
    """Does a table hide one side of the diagonal, as a mask of either sense or as a factor?"""
    if table.dtype == torch.bool:
        return _is_triangle(table, True) or _is_triangle(table, False)
    return _is_triangle(table, True) or _is_triangle(table == 0, True)


def before_order(
    sites: Sequence[Site], causal: Iterable[Core], program: Program
) -> tuple[tuple[Site, ...], list[Miss]]:
    """The sites whose merged tokens no attention of ``causal`` sees, and the others."""
    cones = cones_of(program.graph)
    ordered = list(causal)
    dropped = [
        site
        for site in sites
        if any(c.stream == site.stream and cones.depends(c.node, site.node) for c in ordered)
    ]
    gone = {(site.node, site.stream) for site in dropped}
    # What a dropped site comes after is dropped too.
    kept = tuple(
        replace(site, after=None) if (site.after, site.stream) in gone else site
        for site in sites
        if (site.node, site.stream) not in gone
    )
    cores = [core for site in dropped for core in site.cores]
    return kept, [Miss(core.node, "attention", _FOLLOWS) for core in cores]


def _is_triangle(mask: Tensor, hides: bool) -> bool:
    """Is one side of the diagonal hidden, perhaps with it, and not all of the other side?

    Of tokens that are no padding. There may be more keys than queries: memory, padding, or a
    context behind which a chunk of queries has its own keys. Then it is one somewhere, and what is
    on the hidden side of it is the same for all queries.
    """
    if mask.dim() < 2 or not 2 <= mask.shape[-2] <= mask.shape[-1]:
        return False
    if mask.dtype != torch.bool:
        mask, hides = mask < HIDDEN, True
    hidden = mask if hides else ~mask
    even = (hidden == hidden[..., :1, :]).all(-2)
    for start in range(hidden.shape[-1] - hidden.shape[-2] + 1):
        end = start + hidden.shape[-2]
        above, below = _sides(hidden[..., start:end])
        rest = even[..., end:] if above else even[..., :start]
        if above != below and bool(rest.all()):
            return True
    return False


def _sides(hidden: Tensor) -> tuple[bool, bool]:
    """Is all hidden that is above the diagonal, and below it? Neither where that says nothing."""
    # Padding is hidden from all, itself among them.
    padding = hidden.all(-2, keepdim=True)
    told = int((~padding).sum(-1).max()) > 1
    own = (hidden & ~padding).diagonal(dim1=-2, dim2=-1)
    if not told or bool(own.any() and (~hidden).diagonal(dim1=-2, dim2=-1).any()):
        return False, False
    side = torch.ones(hidden.shape[-2:], dtype=torch.bool, device=hidden.device).triu(1)
    above, below = (bool(hidden[..., half].all()) for half in (side, side.mT))
    return above, below
