"""The level at which the operands of a call meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from torch.fx import Node

from tome_fx.graph.axes import TensorType, batch_axis, has_stream, map_type
from tome_fx.graph.calls import Call, tensor_operands
from tome_fx.graph.cones import is_constant, read_values, reads_a_shape
from tome_fx.graph.ends import forget_streams
from tome_fx.lifting.levels import Levels


@dataclass(frozen=True)
class Meeting:
    """Where operands that share a stream meet.

    Attributes:
        mixing: calls on tokens of several frames that are branches of one stream.
        single: values of the one image of a program, which need no axis of images.
    """

    levels: Levels
    mixing: Set[Node]
    single: Set[Node]

    def of(self, call: Call, have: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """The types of the operands at the deepest level that any of them has.

        Where they come from branches that merged each by itself, or from several frames, at the
        level they parted at. What says nothing of tokens does not decide: a value of which only
        the dtype is read, which stays as it is, and one that is the same everywhere.
        """
        nodes = dict(tensor_operands(call))
        read = read_values(call.node)
        met = [p for p in have if nodes[p] in read or reads_a_shape(call.node)]
        telling = [p for p in met if not is_constant(nodes[p])]
        every = self._depths(call.node, [have[path] for path in met])
        depths = {**every, **self._depths(call.node, [have[path] for path in telling])}
        return {
            path: self._at(type_, depths, nodes[path] in self.single) if path in met else type_
            for path, type_ in have.items()
        }

    def _depths(self, node: Node, types: Iterable[TensorType]) -> dict[int, int]:
        """The level of each stream."""
        found: dict[int, list[int]] = {}
        for stream in itertools.chain.from_iterable(type_.streams for type_ in types):
            found.setdefault(stream.id, []).append(stream.level)
        same = node not in self.mixing
        return {id_: self.levels.common(id_, levels, same) for id_, levels in found.items()}

    def _at(self, type_: TensorType, depths: Mapping[int, int], single: bool) -> TensorType:
        held = any(has_stream(axis) for axis in type_.axes)
        if held and batch_axis(type_) is None and not single and any(depths.values()):
            return forget_streams(type_)
        return map_type(type_, lambda stream: self.levels.at(stream, depths[stream.id]))
