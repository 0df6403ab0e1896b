"""Streams and the batch by their names, in types that a rule gave."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Concat,
    Factor,
    Frames,
    Origin,
    Stream,
    TensorType,
    batch_axis,
    extent,
)
from tome_fx.graph.frames import as_frames, frames_of, keeps_frames, without_frames
from tome_fx.graph.grids import named_grid
from tome_fx.graph.single import cut_from, framed, is_plain_row, row_name, stretch
from tome_fx.program import Program, StreamDef
from tome_fx.rules.ask import is_twice

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class Names:
    """The names of the streams of a program. They may be many: each window of a row is one."""

    program: Program
    streams: tuple[StreamDef, ...]

    def of_all(self, node: Node, types: Types) -> Types:
        """``types`` of what ``node`` yields, its streams and the batch called by their names.

        In a program for one image, the batch is an axis of 1 in front: such a program may take its
        image out of the batch and put a batch around it later. Its values may have no such axis.
        """
        own = self.program.one_image and node in self.program.of_images
        types = tuple(map(framed, types)) if own else types
        return tuple(self._of(t) if own or batch_axis(t) is not None else t for t in types)

    def _of(self, type_: TensorType) -> TensorType:
        if self._frames:
            framed_axes = (as_frames(axis, self._frames) for axis in type_.axes)
            named = self._named_in(TensorType(tuple(framed_axes)))
            if frames_of(named) and keeps_frames(named):
                return named
            # Without their tokens they are an axis as any other, of tokens themselves maybe.
            type_ = TensorType(tuple(map(without_frames, type_.axes)))
        named = self._named_in(type_)
        return named if keeps_frames(named) else type_

    def _named_in(self, type_: TensorType) -> TensorType:
        axes: tuple[Axis, ...] = tuple(map(self._of_axis, type_.axes))
        for stream in self._begun_by(itertools.chain.from_iterable(axes)):
            axes = named_grid(axes, stream.atoms, _named(stream))
        return TensorType(axes)

    @cached_property
    def _frames(self) -> Axis:
        """The factors that are frames with groups of their own for any stream."""
        every = itertools.chain.from_iterable(stream.per for stream in self.streams)
        return tuple(dict.fromkeys(f for f in every if isinstance(f, Atom)))

    def _of_axis(self, axis: Axis) -> Axis:
        named = self._of_row(axis)
        return axis if is_twice(named) else named

    def _of_row(self, axis: Axis) -> Axis:
        row: list[Factor] = [
            Concat(tuple(map(self._of_row, factor.parts))) if isinstance(factor, Concat) else factor
            for factor in self._in_stretches(axis)
        ]
        for stream in self._begun_by(row):
            width = len(stream.atoms)
            for start in range(len(row) - width + 1):
                if tuple(row[start : start + width]) == stream.atoms:
                    row[start : start + width] = [_named(stream)]
                    break
        return _flatten(tuple(row))

    def _in_stretches(self, axis: Axis) -> Axis:
        """An axis in pieces where streams are stretches of it: images packed in one row."""
        found = self._cuts.get(row_name(axis)) if self._cuts and is_plain_row(axis) else None
        whole = extent(axis)
        inside = [ends for ends in found or () if ends[1] <= whole]
        if not inside:
            return axis
        borders = sorted({0, whole, *itertools.chain.from_iterable(inside)})
        return (Concat(tuple(stretch(axis, a, b) for a, b in itertools.pairwise(borders))),)

    def _begun_by(self, factors: Iterable[Factor]) -> list[StreamDef]:
        """The streams that begin with one of these factors, in order."""
        firsts = dict.fromkeys(f for f in factors if isinstance(f, Atom))
        found = [stream for first in firsts for stream in self._by_first.get(first, ())]
        return sorted(found, key=lambda stream: stream.id)

    @cached_property
    def _by_first(self) -> Mapping[Factor, Sequence[StreamDef]]:
        found: dict[Factor, list[StreamDef]] = {}
        for stream in self.streams:
            found.setdefault(stream.atoms[0], []).append(stream)
        return found

    @cached_property
    def _cuts(self) -> Mapping[Origin, Sequence[tuple[int, int]]]:
        """Where streams that are stretches begin and end, by the name of their row."""
        found: dict[Origin, list[tuple[int, int]]] = {}
        for stream in self.streams:
            cut = cut_from(stream.atoms)
            if cut is not None:
                found.setdefault(cut[0], []).append(cut[1:])
        return found


def _named(stream: StreamDef) -> Factor:
    whole = 1
    for factor in stream.atoms:
        whole *= factor.extent if isinstance(factor, Atom) else 1
    per = as_frames(stream.per, stream.per)
    own = tuple(factor for factor in per if isinstance(factor, (Batch, Frames)))
    body = Stream(stream.id, whole - stream.front - stream.back, per=own)
    if not stream.front and not stream.back:
        return body
    first = stream.atoms[0]
    name = first.origin.node if isinstance(first, Atom) else ""
    ends = [
        (Atom(size, Origin("protected", name, (place,))),) if size > 1 else ()
        for place, size in enumerate((stream.front, stream.back))
    ]
    parts: list[Axis] = [(body,)] if body.extent else []
    if stream.front:
        parts.insert(0, ends[0])
    if stream.back:
        parts.append(ends[1])
    return Concat(tuple(parts))


def _flatten(axis: Axis) -> Axis:
    """A concatenation inside a piece of a concatenation joins the outer one."""
    if len(axis) != 1 or not isinstance(axis[0], Concat):
        return axis
    parts: list[Axis] = []
    for part in axis[0].parts:
        single = part[0] if len(part) == 1 else None
        parts.extend(single.parts if isinstance(single, Concat) else [part])
    return (Concat(tuple(parts)),)
