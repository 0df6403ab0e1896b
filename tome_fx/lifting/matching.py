"""The similarity that a site matches by, from the keys of its attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.fx import Node

from tome_fx import ops
from tome_fx.graph.axes import (
    Batch,
    Factor,
    TensorType,
    axis_of,
    batch_axis,
    count,
    factor_count,
    holds,
    pieces,
)
from tome_fx.graph.ends import ends_of, fixed_before, place_of
from tome_fx.graph.frames import per_of
from tome_fx.graph.regroup import reshape_sizes
from tome_fx.graph.single import of_one
from tome_fx.lifting.coerce import Coercer
from tome_fx.lifting.frames import to_images
from tome_fx.lifting.gridded import flattened

aten = torch.ops.aten


@dataclass(frozen=True)
class Key:
    """The keys of an attention at the level that a site merges from.

    ``channel`` is the axis that similarities contract, ``dtype`` what they are computed from.
    """

    node: Node
    type: TensorType
    channel: int
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """The channels of a head."""
        return count(self.type.axes[self.channel])


@dataclass(frozen=True)
class Views:
    """Which keys are seen in which view of an image, or frame or head: ``[B, V, N]``.

    ``parts`` are the extents of the axes that make up ``V``.
    """

    node: Node
    parts: tuple[int, ...]


def emit_scores(
    coercer: Coercer,
    keys: Sequence[Key],
    site: TensorType,
    stream: int,
    views: Views | None = None,
) -> tuple[Node, int]:
    """Scores of A tokens to B tokens, and the parity of the first stream token.

    Parallel cores that share a site share one match: their similarities are averaged. What a view
    does not see is no part of the mean over views.
    """
    axis = axis_of(site, stream)
    parity = fixed_before(axis, place_of(axis, stream)) % 2
    parts = []
    for key in keys:
        node, ends, heads = by_head(coercer, key, stream)
        if views is not None and views.parts == heads[: len(views.parts)]:
            node = coercer.emit(ops.in_view, node, views.node)
        metric = coercer.emit(ops.head_mean, node, *ends)
        parts.append(coercer.emit(ops.similarity, metric, parity))
    return mean_of(coercer, parts), parity


def mean_of(coercer: Coercer, scores: list[Node]) -> Node:
    """The mean of several similarities."""
    total = scores[0]
    for part in scores[1:]:
        total = coercer.emit(aten.add.Tensor, total, part)
    return coercer.emit(aten.div.Tensor, total, len(scores)) if len(scores) > 1 else total


class Heads(NamedTuple):
    """Keys ``[B, H, N, C]``, the protected tokens at the ends of ``N``, and what makes up ``H``."""

    node: Node
    ends: tuple[int, int]
    parts: tuple[int, ...]


def by_head(coercer: Coercer, key: Key, stream: int) -> Heads:
    """K as ``[B, H, N, C]`` in any layout: what is not batch, tokens or channel is a head."""
    node, type_, channel = key.node, key.type, key.channel
    if batch_axis(type_) is None:
        node, type_ = coercer.of_images(node), of_one(type_)
        channel += 1
    node, type_ = to_images(coercer, node, type_, per_of(type_))
    node, type_ = flattened(coercer, node, type_)
    node, type_ = _own_piece(coercer, node, type_, stream)
    places = [(i, factor) for i, axis in enumerate(type_.axes) for factor in axis]
    flat = [factor for _, factor in places]
    batch = next(i for i, f in enumerate(flat) if isinstance(f, Batch))
    token = next(i for i, f in enumerate(flat) if holds((f,), stream))
    inner = [i for i, (axis, _) in enumerate(places) if axis == channel and i not in (batch, token)]
    heads = [i for i in range(len(flat)) if i not in (batch, token, *inner)]
    tokens = type_.axes[places[token][0]]
    ends = ends_of(tokens, place_of(tokens, stream))
    parts = tuple(factor_count(flat[i]) for i in heads)
    plain = all(len(axis) == 1 for axis in type_.axes)
    if plain and len(heads) == 1 and [batch, *heads, token, *inner] == [0, 1, 2, 3]:
        return Heads(node, ends, parts)
    node = coercer.emit(aten.reshape.default, node, reshape_sizes(flat))
    order = [batch, *heads, token, *inner]
    if order != sorted(order):
        node = coercer.emit(aten.permute.default, node, order)
    width = [math.prod(parts), factor_count(flat[token]), _product(flat, inner)]
    return Heads(coercer.emit(aten.reshape.default, node, [-1, *width]), ends, parts)


def _own_piece(
    coercer: Coercer, node: Node, type_: TensorType, stream: int
) -> tuple[Node, TensorType]:
    """The piece of a row that holds a stream, where that has a factor beside its tokens."""
    for place, axis in enumerate(type_.axes):
        start = 0
        for part in pieces(axis[0]) if len(axis) == 1 else ():
            if len(part) > 1 and any(holds((factor,), stream) for factor in part):
                axes = (*type_.axes[:place], part, *type_.axes[place + 1 :])
                piece = coercer.emit(aten.slice.Tensor, node, place, start, start + count(part))
                return piece, TensorType(axes)
            start += count(part)
    return node, type_


def _product(flat: list[Factor], places: list[int]) -> int:
    whole = 1
    for place in places:
        whole *= factor_count(flat[place])
    return whole
