"""Attention that shows a token only those before it, by a mask of the model or the example."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from tome_fx.finding.masks import masks_of
from tome_fx.graph.cones import cones_of
from tome_fx.graph.values import needed_for, value_of
from tome_fx.program import Core, Miss, Program, Site

_FOLLOWS = "a causal attention follows: a merged token has no place in its order"
# Less than any bias: what is added to hide a token.
_HIDDEN = -1e3


def is_causal(core: Core, program: Program) -> bool:
    """Does a mask hide from each token all that follow it?

    Read where the model makes it without images, or from an input as the example has it.
    """
    for node, hides in masks_of(core):
        if node in program.of_images and _has_weights(node, program):
            continue  # logits, or a bias that is made of features
        value = None
        with contextlib.suppress(RuntimeError):  # the example may be one of another program
            value = value_of(node, program.constants, program.given)
        if value is not None and _is_triangle(value, hides):
            return True
    return False


def _has_weights(node: Node, program: Program) -> bool:
    """Have parameters a part in a value?"""
    read = [own for own in needed_for(node) if own.op == "get_attr"]
    return any(isinstance(program.constants.get(str(n.target)), nn.Parameter) for n in read)


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
    """Is one side of the diagonal hidden, and neither the diagonal nor all of the other side?

    Of tokens that are no padding.
    """
    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2] or mask.shape[-1] < 2:
        return False
    if mask.dtype != torch.bool:
        mask, hides = mask < _HIDDEN, True
    hidden = mask if hides else ~mask
    # Padding is hidden from all, itself among them.
    padding = hidden.all(-2, keepdim=True)
    told = int((~padding).sum(-1).max()) > 1
    if not told or bool((hidden & ~padding).diagonal(dim1=-2, dim2=-1).any()):
        return False
    side = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
    above, below = (bool(hidden[..., half].all()) for half in (side, side.mT))
    return above != below
