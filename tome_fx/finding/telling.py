"""Masks that no image has a part in: what they hold, and whether a group cannot follow them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.fx import Node

from tome_fx.finding.masks import factors_of, is_of_truth, masks_of
from tome_fx.graph.axes import TensorType, axis_of, extent, has_batch, holds, is_uniform
from tome_fx.graph.softmaxes import HIDDEN
from tome_fx.graph.values import needed_for, value_of
from tome_fx.program import Core, Program
from tome_fx.rules.hiding import is_counted


def known_value(node: Node, program: Program) -> Tensor | None:
    """What a value is, if the model makes it without images or the example has it."""
    if node in program.of_images and _has_weights(node, program):
        return None  # logits, or a bias that is made of features
    with contextlib.suppress(RuntimeError):  # the example may be one of another program
        return value_of(node, program.constants, program.given)
    return None


def _has_weights(node: Node, program: Program) -> bool:
    """Have parameters a part in a value?"""
    read = [own for own in needed_for(node) if own.op == "get_attr"]
    return any(isinstance(program.constants.get(str(n.target)), nn.Parameter) for n in read)


def uneven_masks(
    core: Core, types: Mapping[Node, tuple[TensorType, ...]], program: Program
) -> Iterator[Node]:
    """The masks of the model that hide some tokens from others, so that members see other tokens.

    Where each token is hidden from itself alone, all members see as many of each group.
    """
    if not any(holds(axis, core.stream) for axis in types[core.query][0].axes):
        return
    asking = extent(axis_of(types[core.query][0], core.stream))
    factors = [(node, False) for node in factors_of(core)]
    for node, hides in dict.fromkeys([*masks_of(core), *factors]):
        row = types.get(node, ())
        if not row or row[0].rank < 2:
            continue
        written_out = any(map(has_batch, row[0].axes))
        if (written_out or program.one_image) and node in program.of_images:
            continue
        sides = [extent(axis) for axis in row[0].axes[-2:] if not is_uniform(axis)]
        if len(sides) < 2 or sides[0] != asking or sides[1] < 2:
            continue
        truth, value = node.meta["val"].dtype is torch.bool, known_value(node, program)
        given = any(own.op == "placeholder" for own in needed_for(node))
        if value is None or given:
            if is_of_truth(node):
                yield node
            continue
        if not truth:
            hidden = value == 0 if (node, False) in factors else value < HIDDEN
        else:
            hidden = value if hides else ~value
        itself = torch.eye(*sides, dtype=torch.bool, device=value.device)
        counted = is_counted(node) and not written_out
        exact = counted and sides[0] == sides[1] and not bool((hidden & ~itself).any())
        if bool(hidden.any()) and not exact:
            yield node
