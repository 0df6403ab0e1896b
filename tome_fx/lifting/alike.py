"""Streams of a row, matched at once: windows of an image, or images packed in a row.

    metric_i = head_mean(k_i, 0, 0)            keys = stretches(k, [0, 64, 128], 64)
    plan_i = match(similarity(metric_i), 5)    plan = match(similarity(head_mean(keys)), 5)
    ...                                   ->   row = join_alike([plan], [[0, 1, 2]], ...)
    row = join_plans([plan_0, ...], ...)

One by one they would take some kernels each, and there may be a hundred of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import Axis, Concat, axis_of, count, pieces, streams_of_axis
from tome_fx.graph.ends import fixed_before, place_of
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.folding import size_row
from tome_fx.lifting.joint import key_of
from tome_fx.lifting.levels import Share
from tome_fx.lifting.matching import Key, by_head, mean_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Merge:
    """A merge of one stream at a site: from which level, how many tokens go, by which keys."""

    stream: int
    level: int
    removed: int
    keys: tuple[Key, ...]


# What streams have in common that are matched at once: tokens, merges, parity, and their keys.
_Kind = tuple[int, int, int, tuple[tuple[Node | None, int, int, torch.dtype], ...]]


@dataclass(frozen=True)
class _Group:
    """Alike merges, and where in the row their streams are."""

    merges: list[Merge]
    places: list[int]


def merge_alike(coercer: Coercer, merges: Sequence[Merge], axis: Axis) -> None:
    """New levels for all ``merges`` of ``axis``, a row of streams (see ``joint.key_of``)."""
    parts = pieces(axis[0])
    place = {s.id: i for i, part in enumerate(parts) for s in streams_of_axis(part)}
    groups: dict[_Kind, _Group] = {}
    for merge in sorted(merges, key=lambda merge: place[merge.stream]):
        at = place[merge.stream]
        group = groups.setdefault(_kind(merge, count(parts[at]), axis), _Group([], []))
        group.merges.append(merge)
        group.places.append(at)
    before = [count(part) for part in parts]
    after = list(before)
    for merge in merges:
        after[place[merge.stream]] -= merge.removed
    found = [(_match(coercer, kind, group), group) for kind, group in groups.items()]
    like = merges[0].keys[0].node
    _add(coercer, axis, found, before, after, like)


def _kind(merge: Merge, tokens: int, axis: Axis) -> _Kind:
    parity = fixed_before(axis, place_of(axis, merge.stream)) % 2
    keys = [
        (key.node if _is_row(key, merge.stream) else None, key.channel, key.width, key.dtype)
        for key in merge.keys
    ]
    return tokens, merge.removed, parity, tuple(keys)


def _is_row(key: Key, stream: int) -> bool:
    """Do keys hold several streams in a row, this one of them?"""
    return key_of(axis_of(key.type, stream)) is not None


def _match(coercer: Coercer, kind: _Kind, group: _Group) -> Node:
    """The plan of alike streams, ``[B * W, ...]``."""
    tokens, removed, parity, keys = kind
    parts = []
    for which, (row, *_) in enumerate(keys):
        cut = [(merge.keys[which], merge.stream) for merge in group.merges]
        if len(cut) == 1 or row is None:
            metric = _stacked(coercer, cut)
        else:
            metric = _from_row(coercer, cut, tokens)
        parts.append(coercer.emit(ops.similarity, metric, parity))
    return coercer.emit(ops.match, mean_of(coercer, parts), removed, parity)


def _stacked(coercer: Coercer, cut: list[tuple[Key, int]]) -> Node:
    """Metrics of keys that each stand by themselves, as images."""
    found = []
    for key, stream in cut:
        standard, ends, _ = by_head(coercer, key, stream)
        found.append(coercer.emit(ops.head_mean, standard, *ends))
    if len(found) == 1:
        return found[0]
    return coercer.emit(aten.flatten.using_ints, coercer.emit(aten.stack.default, found, 1), 0, 1)


def _from_row(coercer: Coercer, cut: list[tuple[Key, int]], tokens: int) -> Node:
    """The metrics of stretches of one row of keys, as images."""
    heads = [by_head(coercer, key, stream) for key, stream in cut]
    starts = [each.ends[0] for each in heads]
    keys = coercer.emit(ops.stretches, heads[0].node, starts, tokens)
    return coercer.emit(ops.head_mean, keys, 0, 0)


def _add(
    coercer: Coercer,
    axis: Axis,
    found: list[tuple[Node, _Group]],
    before: list[int],
    after: list[int],
    like: Node,
) -> None:
    """The level of the row, and the share of each stream in it."""
    levels, parts = coercer.levels, pieces(axis[0])
    plans, places = [plan for plan, _ in found], [group.places for _, group in found]
    plan = coercer.emit(ops.join_alike, plans, places, before, after)
    old = size_row(coercer, axis)
    size = coercer.emit(ops.merged_size, plan, old, like)
    moved = list(parts)
    for alike, group in found:
        for which, (merge, at) in enumerate(zip(group.merges, group.places, strict=True)):
            share = Share(alike, which, len(group.places), size, sum(after[:at]), after[at])
            levels.share(merge.stream, share, merge.removed, merge.level)
            (own,) = streams_of_axis(parts[at])
            moved[at] = (levels.at(own, levels.depth(own.id)),)
    levels.rows.add((Concat(tuple(moved)),), axis, plan, size)
