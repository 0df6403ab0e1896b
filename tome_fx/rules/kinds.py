"""Members or totals: what a pointwise op allows along each token axis.

A group's total (extensive) may only pass through what is linear and homogeneous in it; anything
else gets the member's value. A table that tells members of a group apart takes part as the sum of
its rows: of the identity beside attention weights, say, a group has one, and not one per member.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from tome_fx.graph.axes import (
    Axis,
    TensorType,
    extensive,
    extent,
    has_batch,
    has_stream,
    is_extensive,
    is_merged_axis,
    is_uniform,
    streams_of_axis,
)
from tome_fx.graph.softmaxes import into_softmax
from tome_fx.rules.base import Context, Refusal, as_intensive

# Homogeneous of degree one in their first operand, whatever the others are.
_SCALING = {"aten.neg", "aten.clone", "aten.alias", "aten.detach", "aten.dropout", "aten._to_copy",
            "aten.to", "aten.contiguous", "aten.type_as", "aten.native_dropout",
            "aten.feature_dropout", "aten.positive", "aten.lift_fresh_copy"}  # fmt: skip
_ADDING = {"aten.add", "aten.sub"}


@dataclass(frozen=True)
class Kinds:
    """Operands and result as the op allows them; ``summed`` are tables that hold totals."""

    operands: Mapping[str, TensorType]
    result: TensorType
    summed: frozenset[str] = frozenset()


def kinds(context: Context, result: TensorType) -> Kinds | Refusal:
    """The kinds along each token axis of an op that broadcasts to ``result``.

    A refusal where a table tells members of a group apart and the op cannot take its totals.
    """
    types, name = context.types, context.call.name
    total = {p for p, t in types.items() if any(s.extensive for s in t.streams)}
    if not total:
        pairs = _table_of_pairs(context, result) if name == "aten.mul" else frozenset()
        goal = as_intensive(result)
        if pairs and not rounds(context) and not into_softmax(context.call.node):
            goal = TensorType((*goal.axes[:-1], extensive(goal.axes[-1])))
            return Kinds(types, goal, pairs)
        return Kinds(types, goal)
    paths = list(types)
    if rounds(context):
        return Kinds({p: as_intensive(t) for p, t in types.items()}, as_intensive(result))
    scalars = [v for k, v in context.call.arguments.items() if k in ("other",) and k not in types]
    table = _table_beside(types, total)
    if table and name in _ADDING and not scalars:
        return Kinds(types, _like(types[min(total)], result), table)
    if table and name == "aten.mul":
        members = {p: as_intensive(t) for p, t in types.items()}
        return Kinds(members, _like(types[min(total)], result), table)
    if any(_tells_members(types, part) for part in total):
        return Refusal("a table tells tokens apart that have one total")
    if name in _SCALING or (name in ("aten.mul", "aten.div") and total == {paths[0]}):
        return Kinds(types, _like(types[paths[0]], result))
    if name == "aten.mul" and total == {paths[-1]}:
        return Kinds(types, _like(types[paths[-1]], result))
    same = len(paths) == 2 and types[paths[0]] == types[paths[1]]
    if name in _ADDING and same and not scalars:
        return Kinds(types, types[paths[0]])
    return Kinds({path: as_intensive(t) for path, t in types.items()}, as_intensive(result))


def rounds(context: Context) -> bool:
    """Whole numbers and divisions that round are not homogeneous, whatever the op is called."""
    dtype = context.call.node.meta["val"].dtype if len(context.shapes) == 1 else torch.float32
    whole = not (dtype.is_floating_point or dtype.is_complex)
    return whole or context.call.get("rounding_mode") is not None


def _table_beside(types: Mapping[str, TensorType], total: set[str]) -> frozenset[str]:
    """The other operand of two, if it has a value of its own for each token of the totals."""
    rest = frozenset(types) - total
    if len(total) != 1 or len(rest) != 1:
        return frozenset()
    tells = _told(types[min(rest)], types[min(total)])
    return rest if all(told for _, told in tells) else frozenset()


def _table_of_pairs(context: Context, weights: TensorType) -> frozenset[str]:
    """The other operand of two where weights of tokens for themselves are multiplied by a table.

    It takes part by what it holds for all members of a group: without a softmax weights are sums.
    """
    pairs = weights.axes[-2:]
    rows = [streams_of_axis(axis) for axis in pairs]
    same = len(pairs) == 2 and bool(list(rows[0])) and pairs[0] == pairs[1]
    tables = [
        path
        for path, type_ in context.types.items()
        if type_.rank > 1 and not type_.streams
        if all(_is_row(type_, place, extent(axis)) for place, axis in enumerate(pairs, -2))
    ]
    if not same or not is_merged_axis(pairs[-1]) or len(tables) != 1 or len(context.types) != 2:
        return frozenset()
    return frozenset(tables)


def _tells_members(types: Mapping[str, TensorType], total: str) -> bool:
    """Has any operand a value of its own for each token of what is merged to totals?"""
    return any(
        told and is_merged_axis(axis)
        for path, table in types.items()
        if path != total
        for axis, told in _told(table, types[total])
    )


def _told(table: TensorType, whole: TensorType) -> Iterator[tuple[Axis, bool]]:
    """Each axis of totals of ``whole``, and whether ``table`` tells the tokens there apart."""
    shift = whole.rank - table.rank
    plain = not table.streams
    for place, axis in enumerate(whole.axes):
        if is_extensive(axis):
            told = place >= shift and _is_row(table, place - shift, extent(axis))
            yield axis, plain and told


def _is_row(table: TensorType, place: int, size: int) -> bool:
    """Does ``table`` have a value of its own at each of ``size`` places there?"""
    axis = table.axes[place]
    plain = not (has_batch(axis) or has_stream(axis) or is_uniform(axis))
    return plain and size > 1 and extent(axis) == size


def _like(model: TensorType, result: TensorType) -> TensorType:
    """``result`` with the kinds of ``model``, aligned at the last axis."""
    shift = result.rank - model.rank
    return TensorType(
        tuple(
            model.axes[i - shift] if i >= shift and is_extensive(model.axes[i - shift]) else axis
            for i, axis in enumerate(result.axes)
        )
    )
