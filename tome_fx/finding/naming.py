"""Streams and the batch by their names, in types that a rule gave."""

from __future__ import annotations

import itertools

from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Concat,
    Factor,
    Origin,
    Stream,
    TensorType,
    batch_axis,
    extent,
)
from tome_fx.graph.grids import named_grid
from tome_fx.graph.single import framed, is_plain_row, stretch, stretch_of
from tome_fx.program import Program, StreamDef
from tome_fx.rules.ask import is_twice

Types = tuple[TensorType, ...]


def name_all(program: Program, node: Node, types: Types, streams: tuple[StreamDef, ...]) -> Types:
    """``types`` of what ``node`` yields, its streams and the batch called by their names.

    In a program for one image, the batch is an axis of 1 in front: such a program may take its
    image out of the batch and put a batch around it later. Its values may have no such axis at all.
    """
    own = program.one_image and node in program.of_images
    types = tuple(map(framed, types)) if own else types
    return tuple(_name_type(t, streams) if own or batch_axis(t) is not None else t for t in types)


def _name_type(type_: TensorType, streams: tuple[StreamDef, ...]) -> TensorType:
    axes: tuple[Axis, ...] = tuple(_name_axis(axis, streams) for axis in type_.axes)
    for stream in streams:
        axes = named_grid(axes, stream.atoms, _named(stream))
    return TensorType(axes)


def _name_axis(axis: Axis, streams: tuple[StreamDef, ...]) -> Axis:
    named = _named_axis(axis, streams)
    return axis if is_twice(named) else named


def _named_axis(axis: Axis, streams: tuple[StreamDef, ...]) -> Axis:
    row = _in_stretches(axis, streams)
    inner: list[Factor] = [
        Concat(tuple(_named_axis(part, streams) for part in factor.parts))
        if isinstance(factor, Concat)
        else factor
        for factor in row
    ]
    for stream in streams:
        width = len(stream.atoms)
        for start in range(len(inner) - width + 1):
            if tuple(inner[start : start + width]) == stream.atoms:
                inner[start : start + width] = [_named(stream)]
                break
    flat = tuple(inner)
    return _flatten(flat)


def _named(stream: StreamDef) -> Factor:
    whole = 1
    for factor in stream.atoms:
        whole *= factor.extent if isinstance(factor, Atom) else 1
    body = Stream(stream.id, whole - stream.front - stream.back)
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


def _in_stretches(axis: Axis, streams: tuple[StreamDef, ...]) -> Axis:
    """An axis in pieces where streams are stretches of it: images that were packed in one row."""
    if not is_plain_row(axis):
        return axis
    found = [ends for stream in streams if (ends := stretch_of(stream.atoms, axis)) is not None]
    if not found:
        return axis
    borders = sorted({0, extent(axis), *itertools.chain.from_iterable(found)})
    return (Concat(tuple(stretch(axis, a, b) for a, b in itertools.pairwise(borders))),)
