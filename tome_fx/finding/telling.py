"""Masks that no image has a part in: what they hold, and whether a group cannot follow them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx import Node

from tome_fx.finding.masks import factors_of, is_of_truth, masks_of
from tome_fx.graph.axes import TensorType, axis_of, extent, has_batch, holds, is_uniform
from tome_fx.graph.extents import is_truth
from tome_fx.graph.values import needed_for, value_of
from tome_fx.ops.padding import HIDDEN
from tome_fx.program import Core, Program
from tome_fx.rules.hiding import is_counted


def known_value(node: Node, program: Program) -> Tensor | None:
    """What a value is, if the model makes it without images or the example has it."""
    if node in program.of_images and has_weights(node, program):
        return None  # logits, or a bias that is made of features
    with contextlib.suppress(RuntimeError):  # the example may be one of another program
        return value_of(node, program.constants, program.given)
    return None


def has_weights(node: Node, program: Program) -> bool:
    """Have parameters a part in a value?"""
    read = [own for own in needed_for(node) if own.op == "get_attr"]
    return any(isinstance(program.constants.get(str(n.target)), nn.Parameter) for n in read)


def uneven_masks(
    core: Core, types: Mapping[Node, tuple[TensorType, ...]], program: Program
) -> Iterator[Node]:
    """The masks of the model that hide some tokens from some or all others.

    So members see other tokens, or are seen by others. Where each token is hidden from itself
    alone, all members see as many of each group; so they do of keys that are hidden from all, where
    the members that are seen are counted.
    """
    if not any(holds(axis, core.stream) for axis in types[core.query][0].axes):
        return
    asking, asked = (extent(axis_of(types[n][0], core.stream)) for n in (core.query, core.key))
    factors = [(node, False) for node in factors_of(core)]
    for node, hides in dict.fromkeys([*masks_of(core), *factors]):
        row = types.get(node, ())
        if not row:
            continue
        written_out = any(map(has_batch, row[0].axes))
        if (written_out or program.one_image) and node in program.of_images:
            continue
        sides = [extent(axis) for axis in row[0].axes[-2:] if extent(axis) > 1]
        for_all = len(sides) < 2 or is_uniform(row[0].axes[-2])
        if asked < 2 or sides[-1:] != [asked] or is_uniform(row[0].axes[-1]):
            continue
        if not for_all and sides[0] != asking:
            continue
        truth, value = is_truth(node), known_value(node, program)
        given = any(own.op == "placeholder" for own in needed_for(node))
        if value is None or given:
            if is_of_truth(node):
                yield node
            continue
        if not truth:
            hidden = value == 0 if (node, False) in factors else value < HIDDEN
        else:
            hidden = value if hides else ~value
        exact = is_counted(node) and not written_out and (for_all or _is_of_itself(hidden))
        if bool(hidden.any()) and not exact:
            yield node


def _is_of_itself(hidden: Tensor) -> bool:
    """Is nothing hidden but each token from itself?"""
    asking, asked = hidden.shape[-2:]
    itself = torch.eye(asking, asked, dtype=torch.bool, device=hidden.device)
    return asking == asked and not bool((hidden & ~itself).any())
