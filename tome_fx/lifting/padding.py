"""Padding: a token that attention does not look at never merges with one that it does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.finding.masks import masks_of, row_of_images
from tome_fx.graph.axes import Axis, count
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.lifter import Value
from tome_fx.program import Core

aten = torch.ops.aten


def visible(coercer: Coercer, core: Core, keys: Axis, values: Mapping[Node, Value]) -> Node | None:
    """Which tokens the keys of ``core`` show, ``[B, N]`` on the axis ``keys``; None for all.

    A mask that differs from query to query, or from head to head, is no padding.
    """
    for node, hides in masks_of(core):
        value = values.get(node)
        goal = row_of_images(value.types[0], keys) if value and value.types else None
        if value is None or goal is None:
            continue
        row = coercer.coerce(value.node, value.types[0], goal)
        times = math.prod(count(axis[1:]) for axis in goal.axes[:-1] if axis)
        if times > 1:
            row = coercer.emit(aten.reshape.default, row, [-1, times, count(keys)])
            row = coercer.emit(aten.select.int, row, 1, 0)
        row = coercer.emit(aten.reshape.default, row, [-1, count(keys)])
        return coercer.emit(ops.shown, row, hides)
    return None
