"""Padding: a token that attention does not look at never merges with one that it does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.finding.mask_types import mask_type, row_of_images, views_of
from tome_fx.finding.masks import (
    all_masks_of,
    masks_of,
    pairs_of,
    rows_before,
    tells_views,
)
from tome_fx.graph.axes import (
    Axis,
    Batch,
    TensorType,
    batch_axis,
    count,
    extent,
    factor_count,
    is_merged,
    is_uniform,
)
from tome_fx.graph.frames import called_frames, per_of, row_of
from tome_fx.graph.regroup import reshape_sizes
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.frames import to_images
from tome_fx.lifting.lifter import Lifter, Value
from tome_fx.lifting.matching import Views
from tome_fx.program import Core

aten = torch.ops.aten


@dataclass(frozen=True)
class Shown:
    """What a mask says of the tokens of a site, on the axis of its keys.

    Attributes:
        visible: ``[B, N]``, which are no padding; None if all are.
        kinds: ``[B or 1, N]``, which see the same; None where a mask says no more than that.
        pairs: ``[B or 1, N, N]``, which see which, where both of these are told.
        views: ``[B, V, N]``, in which of several views of an image, or frames or heads, they are
            visible, and the extents that make up ``V``; where a mask tells these apart.
    """

    visible: Node | None
    kinds: Node | None = None
    pairs: Node | None = None
    views: Views | None = None


def shown(
    lifter: Lifter, core: Core, keys: Axis, told: MutableMapping[Node, tuple[Node, ...]]
) -> Shown | None:
    """What the masks of ``core`` show of its ``keys``; None for all.

    A mask that shows queries other keys than each other is no padding, unless queries and keys are
    the same tokens and all heads see alike. One that differs between views, frames or heads has
    tokens merge that are seen in the same of them.

    Args:
        told: what masks of pairs were found to say; filled here, as it is the same for every site.
    """
    coercer = lifter.coercer
    rows, pairs = _masks(lifter, core, keys)
    shows, patterns, views = _rows(coercer, rows)
    if pairs is None:
        kinds, table = _kinds_of_table(lifter, core, keys, told)
        if not shows:
            return None if kinds is None else Shown(None, kinds)
        return Shown(_all(coercer, shows), _together(coercer, kinds, patterns), table, views)
    if pairs.value.node not in told:
        of_pairs = _shows(coercer, pairs, 2)
        each_one = coercer.emit(ops.seen, of_pairs), coercer.emit(ops.kinds, of_pairs)
        told[pairs.value.node] = *each_one, of_pairs
    # Of all tokens once: where an image of several is one token by now, it looks like padding.
    images = (Batch(lifter.program.batch),)
    whole = row_of(lifter.findings.types[core.key][0], core.stream)
    visible, kinds, sees = (
        coercer.coerce(
            each, TensorType((images, *(whole,) * own)), TensorType((images, *(keys,) * own)), True
        )
        for each, own in zip(told[pairs.value.node], (1, 1, 2), strict=True)
    )
    kinds = _together(coercer, kinds, patterns)
    return Shown(_all(coercer, [visible, *shows]), kinds, sees, views)


def _rows(coercer: Coercer, rows: list[_Mask]) -> tuple[list[Node], list[Node], Views | None]:
    """What rows show in any view of an image; and in which, as kinds, and of the first in full."""
    shows, patterns, views = [], [], None
    for row in rows:
        shown = _shows(coercer, row, 1)
        parts = views_of(row.goal)
        if parts:
            views = views or Views(shown, parts)
            patterns.append(coercer.emit(ops.patterns, shown))
            shown = coercer.emit(aten.any.dim, shown, 1)
        shows.append(shown)
    return shows, patterns, views


def _together(coercer: Coercer, kinds: Node | None, patterns: list[Node]) -> Node | None:
    """Kinds of tokens that are alike by all of several."""
    found = [*([] if kinds is None else [kinds]), *patterns]
    return functools.reduce(lambda a, b: coercer.emit(ops.both, a, b), found) if found else None


def _all(coercer: Coercer, shows: list[Node]) -> Node:
    """What all of several rows show."""
    return functools.reduce(
        lambda one, two: coercer.emit(aten.logical_and.default, one, two), shows
    )


def _kinds_of_table(
    lifter: Lifter, core: Core, keys: Axis, told: MutableMapping[Node, tuple[Node, ...]]
) -> tuple[Node | None, Node | None]:
    """Which ``keys`` a mask that all images share treats alike, and which see which.

    ``[B or 1, N]`` and ``[B or 1, N, N]``; the latter None where it has one row for all.
    Of this attention, or of another one that these tokens come to: windows by a mask may stand
    between blocks without one.
    """
    coercer, types = lifter.coercer, lifter.findings.types
    whole = row_of(types[core.key][0], core.stream)
    if not lifter.findings.uneven or len(whole) > 1:  # of all frames: no mask of their places
        return None, None
    every = (c for s in lifter.findings.sites if s.stream == core.stream for c in s.cores)
    same = (c for c in every if row_of(types[c.key][0], c.stream) == whole)
    for node, hides in itertools.chain(masks_of(core), *map(masks_of, same)):
        if node not in lifter.findings.uneven:
            continue
        *around, asking, asked = ((), *types[node][0].axes)[-max(2, types[node][0].rank) :]
        for_all = extent(asking) == 1 or is_uniform(asking)
        if extent(asked) != extent(whole) or not (for_all or extent(asking) == extent(whole)):
            continue  # of another row
        if not all(isinstance(f, Batch) or is_uniform((f,)) for axis in around for f in axis):
            continue  # others for each head
        value = lifter.ahead(node)
        if value is None:
            continue
        if value.node not in told:
            table = _table(coercer, value, for_all, hides)
            if for_all:
                alike = coercer.emit(aten._to_copy.default, table, dtype=torch.int64)
            else:
                alike = coercer.emit(ops.kinds, table)
            told[value.node] = alike, table
        found = told[value.node]
        images = (Batch(lifter.program.batch),)
        if is_merged(TensorType((keys,))):
            rows = (coercer.emit(aten.select.int, each, 0, 0) for each in found)
            goals = (TensorType((whole,) * n) for n in (1, 1 if for_all else 2))
            found = tuple(
                coercer.coerce(each, have, TensorType((images, *(keys for _ in have.axes))))
                for each, have in zip(rows, goals, strict=True)
            )
        return found[0], None if for_all else found[1]
    return None, None


def _table(coercer: Coercer, mask: Value, for_all: bool, hides: bool) -> Node:
    """What a table that is the same for all images and heads it is written out for shows.

    ``[1, N, N]``, or ``[1, N]`` of one row for all.
    """
    table, type_ = mask.node, mask.types[0]
    own = 1 if for_all else 2
    for _ in range(type_.rank - own):
        table = coercer.emit(aten.select.int, table, 0, 0)
    sizes = [extent(axis) for axis in type_.axes[-own:]]
    return coercer.emit(ops.shown, coercer.emit(aten.reshape.default, table, [1, *sizes]), hides)


@dataclass(frozen=True)
class _Mask:
    """A mask, the type that it is read by, and whether True hides there."""

    value: Value
    goal: TensorType
    hides: bool


def _masks(lifter: Lifter, core: Core, keys: Axis) -> tuple[list[_Mask], _Mask | None]:
    """The masks with a row for each image, and the nearest with a row for each token.

    The former of the ``keys`` as they are merged, the latter of all tokens.
    """

    def read(node: Node, own: int) -> tuple[Value, TensorType] | None:
        value = _mask_value(lifter, node, core)
        goal = None if value is None else row_of_images(value.types[0], keys, own)
        if value is None or goal is None or (views_of(goal) and not tells_views(node)):
            return None
        return value, goal

    rows = [_Mask(*found, hides) for found, hides in rows_before(core, read)]
    for node, hides, own in all_masks_of(core):
        value = _mask_value(lifter, node, core) if own > 1 else None
        goal = None if value is None else pairs_of(node, core, lifter.findings, lifter.program)
        if value is not None and goal is not None:
            return rows, _Mask(value, goal, hides)
    return rows, None


def _mask_value(lifter: Lifter, node: Node, core: Core) -> Value | None:
    """What a mask became, with an axis of images also where it is that of the only one.

    Frames that have groups of their own are images there.
    """
    value = lifter.values.get(node)
    type_ = mask_type(node, value.types, lifter.program) if value is not None else None
    if value is None or type_ is None:
        return None
    mask, per = value.node, per_of(lifter.findings.types[core.key][0])
    if type_.rank > value.types[0].rank:
        mask = lifter.coercer.of_images(mask)
    if per and batch_axis(type_) is not None:
        type_ = called_frames(type_, lifter.findings.frames)
        mask, type_ = to_images(lifter.coercer, mask, type_, per)
    return Value(mask, (type_,))


def _shows(coercer: Coercer, mask: _Mask, own: int) -> Node:
    """What a mask shows, as ``[B, N]``, or ``[B, N, N]`` with its last two axes ``own``.

    Of several views ``[B, V, N]``.
    """
    goal = mask.goal
    node = coercer.coerce(mask.value.node, mask.value.types[0], goal)
    sizes = [count(axis) for axis in goal.axes[-own:]]
    around = [factor for axis in goal.axes[:-own] for factor in axis]
    # An axis of one image alone is none of the goal.
    images = next((i for i, factor in enumerate(around) if isinstance(factor, Batch)), 0)
    if images:
        flat = reshape_sizes(around)
        order = [images, *(i for i in range(len(flat) + own) if i != images)]
        node = coercer.emit(aten.reshape.default, node, [*flat, *sizes])
        node = coercer.emit(aten.permute.default, node, order)
    times = math.prod(factor_count(f) for f in around if not isinstance(f, Batch))
    if times > 1:
        node = coercer.emit(aten.reshape.default, node, [-1, times, *sizes])
        if own == 1 and views_of(goal):
            return coercer.emit(ops.shown, node, mask.hides)
        node = coercer.emit(aten.select.int, node, 1, 0)
    node = coercer.emit(aten.reshape.default, node, [-1, *sizes])
    return coercer.emit(ops.shown, node, mask.hides)
