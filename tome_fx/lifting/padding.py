"""Padding: a token that attention does not look at never merges with one that it does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.finding.masks import masks_of, row_of_images
from tome_fx.graph.axes import Axis, TensorType, count
from tome_fx.lifting.coerce import Coercer
from tome_fx.program import Core

aten = torch.ops.aten


def visible(
    coercer: Coercer, core: Core, keys: Axis, values: Mapping[Node, tuple[Node, TensorType]]
) -> Node | None:
    """Which tokens the keys of ``core`` show, ``[B, N]`` on the axis ``keys``; None for all.

    A mask that differs from query to query, or from head to head, is no padding.
    """
    for node, hides in masks_of(core):
        if node not in values:
            continue
        new, type_ = values[node]
        goal = row_of_images(type_, keys)
        if goal is None:
            continue
        row = coercer.coerce(new, type_, goal)
        row = coercer.emit(aten.reshape.default, row, [-1, count(keys)])
        return coercer.emit(ops.shown, row, hides)
    return None
