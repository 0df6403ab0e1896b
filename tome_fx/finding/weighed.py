"""Calls that weigh each token for a sum over them, by a table of the model.

    (x * w).mean(1), with w of [N, 1]       a pooling that counts the middle of an image for more

Members of a group are equal, and what each of them counts for is not: no group can follow it. In
front of anything else such a factor is the representative's, as of any table of positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from torch.fx import Node

from tome_fx.finding.telling import has_weights, known_value
from tome_fx.graph.axes import TensorType, extent, has_stream, is_uniform
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.extents import tensor_value
from tome_fx.graph.softmaxes import SCALES
from tome_fx.program import Program, StreamDef

_FACTORS = ("aten.mul", "aten.div")
_SUMS = ("aten.sum", "aten.mean")
_Types = Mapping[Node, tuple[TensorType, ...]]


def weighed_for_sums(
    program: Program, types: _Types, streams: tuple[StreamDef, ...]
) -> frozenset[Node]:
    """The products of tokens and such a table that a sum or a mean reads, by scales alone."""
    return frozenset(
        node
        for node in program.graph.nodes
        if calls(node, _FACTORS)
        and any(_is_table(node, dim, program, types, streams) for dim in set(_summed(node, types)))
    )


def _summed(node: Node, types: _Types) -> Iterator[int]:
    """The axes of tokens that are summed over by some call that a value goes into."""
    row = types.get(node, ())
    if not row or max(Counter(row[0].ids).values(), default=0) != 1:
        return
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            value = tensor_value(user)
            if calls(user, _SUMS):
                yield from _axes(user, row[0])
            elif calls(user, SCALES) and value is not None and value.dim() == row[0].rank:
                waiting += [user] if user not in seen else []
                seen.add(user)


def _axes(call: Node, type_: TensorType) -> Iterator[int]:
    given = bind(call).get("dim")
    dims = range(type_.rank) if given in (None, [], ()) else given
    dims = [dims] if isinstance(dims, int) else dims
    yield from (dim % type_.rank for dim in dims if has_stream(type_.axes[dim % type_.rank]))


def _is_table(
    node: Node, dim: int, program: Program, types: _Types, streams: tuple[StreamDef, ...]
) -> bool:
    """Is an operand a value of the model that is not the same for all tokens of an axis?"""
    rank = types[node][0].rank
    for operand in node.all_input_nodes:
        row = types.get(operand, ())
        here = dim - rank + row[0].rank if row else -1
        if operand in program.of_images or here < 0:
            continue
        axis = row[0].axes[here]
        if extent(axis) < 2 or is_uniform(axis):
            continue
        if has_weights(operand, program) or not _is_even(operand, here, program, streams):
            return True
    return False


def _is_even(table: Node, dim: int, program: Program, streams: tuple[StreamDef, ...]) -> bool:
    """Is a value known to be the same for all tokens that may merge?"""
    value = known_value(table, program)
    if value is None:
        return False
    size = value.shape[dim]
    for stream in streams:
        if extent(stream.atoms) == size:
            value = value.narrow(dim, stream.front, size - stream.front - stream.back)
            break
    return bool((value == value.narrow(dim, 0, 1)).all())
