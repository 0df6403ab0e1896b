"""Attention without a softmax over tokens: linear and cross-covariance attention, other weights.

    linear            q (k' v)          the keys' channels meet the queries'
    cross-covariance  softmax(q' k) v'  the keys' channels meet the values'
    weights           sigmoid(q k') v   each token's weights for all, made by anything pointwise

The first two contract two values over their tokens, and what comes out meets a third value of the
same tokens in another product. The keys are the operand whose channels are contracted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from tome_fx.finding.cores import (
    PRODUCTS,
    Anchor,
    anchors_above,
    is_inside_places,
    is_tokens,
    letters_of,
    runs,
)
from tome_fx.graph.axes import Axis, TensorType
from tome_fx.graph.calls import Call, bind, tensor_operands
from tome_fx.graph.extents import Extents
from tome_fx.graph.upstream import operands_along
from tome_fx.rules.contract import Letters

Types = Mapping[Node, tuple[TensorType, ...]]


@dataclass(frozen=True)
class _Contraction:
    """A product over tokens: its operands, its letters, and the letter of the tokens."""

    operands: tuple[Node, Node]
    letters: Letters
    tokens: str
    axis: Axis


def contraction_anchors(graph: Graph, plain: Types, extents: Extents) -> list[tuple[Anchor, ...]]:
    """An anchor for each product that a contraction over tokens flows into."""
    found: dict[Node, _Contraction] = {}
    anchors: list[tuple[Anchor, ...]] = []
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        call = bind(node)
        if call.name == "aten.scaled_dot_product_attention":
            anchors.extend(_fused(call, plain))
        if call.name not in PRODUCTS:
            continue
        letters = letters_of(call)
        if letters is None:
            continue
        contraction = _contraction(call, letters, plain)
        if contraction is not None:
            found[node] = contraction
            continue
        anchors.extend(_weights_anchors(call, letters, plain, extents))
        row = tuple(_anchors(call, letters, found, plain, extents)) if found else ()
        if row:
            anchors.append(row)
    return anchors


def _is_for_each(type_: TensorType, place: int) -> bool:
    """Does another axis hold tokens of this one: is it a weight of each token for each?"""
    keys = list(filter(is_tokens, runs(type_.axes[place])))
    others = (axis for i, axis in enumerate(type_.axes) if i != place)
    return any(run in keys for axis in others for run in runs(axis))


def _weights_anchors(
    call: Call, letters: Letters, plain: Types, extents: Extents
) -> Iterator[tuple[Anchor, ...]]:
    """``call`` as a sum of values by weights of each token for each, that no softmax made."""
    summed = [c for c in letters.left if c in letters.right and c not in letters.result]
    for node, names in zip(_operands(call), letters[:2], strict=True):
        type_ = plain.get(node)
        if len(summed) != 1 or not type_:
            continue
        place = names.index(summed[0])
        if _is_for_each(type_[0], place):
            row = tuple(anchors_above(node, "weights", node, place, extents))
            if row:
                yield row


def _fused(call: Call, plain: Types) -> Iterator[tuple[Anchor, ...]]:
    """A fused attention between channels: all three operands have the tokens last, and there alone.

    Its values are what the result is made of, its keys what meets them by channels.
    """
    nodes = [call[name] for name in ("query", "key", "value")]
    types = [plain[node][0] for node in nodes if plain.get(node)]
    if len(types) < len(nodes) or any(type_.axes[-1] != types[0].axes[-1] for type_ in types):
        return
    axis = types[0].axes[-1]
    alone = all(t.axes.count(axis) == 1 and not is_inside_places(t, t.rank - 1) for t in types)
    if alone and any(map(is_tokens, runs(axis))):
        _, key, value = nodes
        yield (Anchor(call.node, "contraction", value, key, -1, -1, -2),)


def _operands(call: Call) -> tuple[Node, Node]:
    left, right = [node for _, node in tensor_operands(call)][-2:]
    return left, right


def _contraction(call: Call, letters: Letters, plain: Types) -> _Contraction | None:
    """``call`` as a product over tokens of two values that each have them once."""
    summed = [c for c in letters.left if c in letters.right and c not in letters.result]
    left, right = _operands(call)
    if len(summed) != 1 or not plain.get(left) or not plain.get(right):
        return None
    rows = [
        (plain[node][0], names.index(summed[0]))
        for node, names in ((left, letters.left), (right, letters.right))
    ]
    axis = rows[0][0].axes[rows[0][1]]
    if not any(map(is_tokens, runs(axis))) or rows[1][0].axes[rows[1][1]] != axis:
        return None
    if any(_is_for_each(type_, at) or is_inside_places(type_, at) for type_, at in rows):
        return None  # or tokens of a window
    return _Contraction((left, right), letters, summed[0], axis)


def _anchors(
    call: Call,
    letters: Letters,
    found: Mapping[Node, _Contraction],
    plain: Types,
    extents: Extents,
) -> Iterator[Anchor]:
    """``call`` as the product of a contraction's result with a value of the same tokens."""
    summed = [c for c in letters.left if c in letters.right and c not in letters.result]
    if len(summed) != 1:
        return
    pairs = zip(_operands(call), letters[:2], reversed(_operands(call)), strict=False)
    for node, names, other in pairs:
        place = names.index(summed[0])
        source, dim = _source(node, place, found, extents)
        type_ = plain.get(other)
        if source is None or not type_ or found[source].axis not in type_[0].axes:
            continue
        contraction = found[source]
        letter = contraction.letters.result[dim]
        for key, own in zip(contraction.operands, contraction.letters[:2], strict=True):
            if letter in own and _channels(contraction, letter):
                at = own.index(contraction.tokens), own.index(letter)
                query = type_[0].axes.index(contraction.axis)
                yield Anchor(call.node, "contraction", other, key, query, *at)


def _channels(contraction: _Contraction, letter: str) -> bool:
    """Is the letter a channel of one operand, not a head of both?"""
    return (letter in contraction.letters.left) != (letter in contraction.letters.right)


def _source(
    node: Node, dim: int, found: Mapping[Node, _Contraction], extents: Extents
) -> tuple[Node | None, int]:
    """The contraction that an axis comes from through ops that keep it, and its axis there."""
    waiting, seen = [(node, range(dim, dim + 1))], set()
    while waiting:
        here, stretch = waiting.pop(0)
        if here in found and len(stretch) == 1:
            return here, stretch.start
        if here in seen or not isinstance(here.target, torch._ops.OpOverload):
            continue
        seen.add(here)
        call = bind(here)
        if call.name not in PRODUCTS:
            waiting.extend(operands_along(call, stretch, extents))
    return None, 0
