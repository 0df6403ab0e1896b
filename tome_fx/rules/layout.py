"""Ops that move, split and join axes without touching a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from tome_fx.graph.axes import (
    Atom,
    Axis,
    Batch,
    Origin,
    TensorType,
    extent,
    has_batch,
    has_stream,
    is_extensive,
    is_merged,
    lifted_shape,
)
from tome_fx.graph.joined import concat
from tome_fx.graph.regroup import regroup
from tome_fx.graph.unify import unify_all
from tome_fx.rules.base import Builder, Context, Lifted, Operands, Refusal, as_intensive, one
from tome_fx.rules.local import demands
from tome_fx.rules.views import side_by_side

aten = torch.ops.aten
# What makes each channel of all channels.
_MIXING = (aten.linear.default, aten.addmm.default)


def reshape(context: Context) -> Lifted | Refusal:
    """``reshape``, ``view``, ``flatten``, ``unflatten`` and their kin.

    On merged tokens always emitted as ``reshape`` with the counts of the rewritten program: a
    ``view`` of the original need not be one of merged tokens.
    """
    if "dtype" in context.call.arguments:
        return Refusal("it reads the bits of a value as another dtype")
    type_ = context.types[next(iter(context.types))]
    axes = regroup(type_.axes, context.shape, context.call.node.name)
    if axes is None:
        return Refusal(f"it splits or reorders tokens: {type_}")
    result = TensorType(axes)
    if not any(map(is_merged, context.types.values())):
        return one(result)
    path = next(iter(context.types))

    def build(builder: Builder, operands: Operands) -> Any:
        return builder.call(aten.reshape.default, operands[path], lifted_shape(result))

    return one(result, build=build)


def permute(context: Context) -> Lifted | Refusal:
    """``permute``, ``transpose``, ``movedim``, ``t``."""
    type_ = context.types["self"]
    order = _order(context, type_.rank)
    return one(TensorType(tuple(type_.axes[i] for i in order)))


def _order(context: Context, rank: int) -> list[int]:
    call = context.call
    if call.name == "aten.permute":
        return [dim % rank for dim in call["dims"]]
    order = list(range(rank))
    if call.name in ("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint"):
        return [*order[:-2], *reversed(order[-2:])] if call.name != "aten.numpy_T" else order[::-1]
    if call.name == "aten.movedim":
        source, target = ([v] if isinstance(v, int) else v for v in _ends(context))
        rest = [i for i in order if i not in [s % rank for s in source]]
        for destination, origin in sorted(
            (t % rank, s % rank) for s, t in zip(source, target, strict=True)
        ):
            rest.insert(destination, origin)
        return rest
    first, second = (call[n] % rank for n in _swap_names(context))
    order[first], order[second] = order[second], order[first]
    return order


def _ends(context: Context) -> tuple[Any, Any]:
    return context.call["source"], context.call["destination"]


def _swap_names(context: Context) -> tuple[str, str]:
    return ("axis0", "axis1") if "axis0" in context.call.arguments else ("dim0", "dim1")


def squeeze(context: Context) -> Lifted | Refusal:
    """``squeeze`` and ``unsqueeze``: axes of extent 1 go and come."""
    type_ = context.types["self"]
    axes = list(type_.axes)
    if context.call.name == "aten.unsqueeze":
        axes.insert(context.dim(context.call["dim"], type_.rank + 1), ())
        return one(TensorType(tuple(axes)))
    dims = context.call.get("dim", list(range(type_.rank)))
    dims = [d % type_.rank for d in ([dims] if isinstance(dims, int) else dims)]
    gone = [d for d in dims if extent(axes[d]) == 1]
    if any(has_stream(axes[d]) for d in gone):
        return Refusal("it drops the axis of a single token")
    result = TensorType(tuple(axis for i, axis in enumerate(axes) if i not in gone))
    if not is_merged(type_):
        return one(result)

    # A stream may be down to one token here: the axes that go are named.
    def build(builder: Builder, operands: Operands) -> Any:
        return builder.call(aten.squeeze.dims, operands["self"], gone)

    return one(result, build=build)


def expand(context: Context) -> Lifted | Refusal:
    """``expand``: axes of extent 1 get a size; a written size of another axis is -1."""
    type_ = context.types["self"]
    sizes = list(context.call["size"])
    shift = len(sizes) - type_.rank
    axes: list[Axis] = []
    for i, size in enumerate(sizes):
        old: Axis = type_.axes[i - shift] if i >= shift else ()
        if context.shape[i] == extent(old):
            axes.append(old)
            sizes[i] = -1 if i >= shift else size
        else:
            axes.append(sized(context, size, context.shape[i], i))
    arguments = {"size": sizes} if is_merged(type_) else {}
    return one(TensorType(tuple(axes)), arguments=arguments)


def sized(context: Context, size: Any, wanted: int, place: int) -> Axis:
    """The axis that a written size makes: the one that it measures, else a new plain one."""
    known = context.sizes.get(size) if isinstance(size, torch.fx.Node) else None
    if known is not None and extent(known) == wanted and all(isinstance(f, Batch) for f in known):
        return known
    return (Atom(wanted, Origin("literal", context.call.node.name, (place,))),)


def repeat(context: Context) -> Lifted | Refusal:
    """``repeat``: copies of an axis, one after the other."""
    type_ = context.types["self"]
    sizes = context.call["repeats"]
    shift = len(sizes) - type_.rank
    axes: list[Axis] = []
    for i, size in enumerate(sizes):
        old: Axis = type_.axes[i - shift] if i >= shift else ()
        if context.shape[i] == extent(old):
            axes.append(old)
        elif extent(old) and context.shape[i] % extent(old) == 0:
            plain = extent(old) == 1 and not has_stream(old) and not has_batch(old)
            copies = sized(context, size, context.shape[i] // extent(old), i)
            if has_batch(old):
                copies = (Atom(extent(copies), Origin("copies", context.call.node.name)),)
            axes.append(copies if plain else (*copies, *old))
        else:
            return Refusal("it repeats an axis")
    return one(TensorType(tuple(axes)))


def repeat_interleave(context: Context) -> Lifted | Refusal:
    """``repeat_interleave``: each position of an axis several times in a row."""
    type_, size = context.types["self"], context.call["repeats"]
    if not isinstance(size, int) or context.call.get("dim") is None:
        return Refusal("it repeats each position another number of times")
    dim = context.dim(context.call["dim"], type_.rank)
    copies: Axis = (Atom(size, Origin("literal", context.call.node.name, (dim,))),)
    axis = (*type_.axes[dim], *(copies if size > 1 else ()))
    return one(TensorType((*type_.axes[:dim], axis, *type_.axes[dim + 1 :])))


def one_kind(types: Mapping[str, TensorType]) -> Mapping[str, TensorType]:
    """Values that are put side by side: all totals along the same axes, or else all members'."""
    kinds = {tuple(is_extensive(axis) for axis in type_.axes) for type_ in types.values()}
    return types if len(kinds) < 2 else {p: as_intensive(t) for p, t in types.items()}


def cat(context: Context) -> Lifted | Refusal:
    """``cat``: the pieces of the joined axis stand side by side; the other axes are one axis."""
    given = one_kind(context.types)
    types = [t for t in given.values() if t.rank == len(context.shape)]
    dim = context.dim(context.call["dim"], len(context.shape))
    axes: list[Axis] = []
    for i in range(len(context.shape)):
        here = [type_.axes[i] for type_ in types]
        axis = _joined(context, types, i) if i == dim else unify_all(here)
        if axis is None:
            return Refusal("it joins different tokens")
        axes.append(axis)
    result = TensorType(tuple(axes))
    wanted: dict[str, TensorType] = {}
    for path, type_ in given.items():
        if type_.rank == result.rank:
            frame = TensorType((*axes[:dim], type_.axes[dim], *axes[dim + 1 :]))
            wanted.update(demands({path: type_}, frame))
    return one(result, operands=wanted)


def _joined(context: Context, types: Sequence[TensorType], dim: int) -> Axis | None:
    """The axis that parts make side by side; equal rows of images are a product with them."""
    parts = [type_.axes[dim] for type_ in types]
    several = side_by_side(types, dim)
    if not any(has_batch(part) for part in parts):
        frames = several and all(extent(part) == 1 and not has_stream(part) for part in parts)
        frame = Atom(len(parts), Origin("frames", context.call.node.name))
        return (frame,) if frames else concat(parts)
    if len(parts) == 1:
        return parts[0]
    whole = unify_all(parts)
    kind = "images" if several else "channel" if _are_heads(context, types) else "copies"
    row = Atom(len(parts), Origin(kind, context.call.node.name))
    return None if whole is None else (row, *whole)


def _are_heads(context: Context, types: Sequence[TensorType]) -> bool:
    """Do the values hold the channels of one, cut to pieces: each image once, not several views?

    Of a linear, which makes each of all: channels of a convolution may be those of several images,
    which its groups keep apart.
    """
    rows = zip(*(type_.axes for type_ in types), strict=False)
    cut = {_cut(row) for row in rows if len(set(row)) == len(row)} - {""}
    nodes = (node for node in context.call.node.graph.nodes if node.name in cut)
    return any(_source(node).target in _MIXING for node in nodes)


def _cut(axes: Sequence[Axis]) -> str:
    """The node whose channels the axes are pieces of, each one; empty if they are not."""
    atoms = [f for axis in axes for f in axis if isinstance(f, Atom) and f.origin.kind == "channel"]
    names = {atom.origin.node for atom in atoms}
    whole = len(atoms) == len(axes) == sum(map(len, axes))
    return names.pop() if whole and len(names) == 1 else ""


def _source(node: Node) -> Node:
    """What a value is before its axes were moved and cut."""
    op = node.target
    while isinstance(op, torch._ops.OpOverload) and op._schema.returns[0].alias_info is not None:
        node = node.all_input_nodes[0]
        op = node.target
    return node


def stack(context: Context) -> Lifted | Refusal:
    """``stack``: a new plain axis over values of one type, or over frames, each of its own."""
    rank = len(context.shape) - 1
    given = one_kind(context.types)
    axes = [unify_all(type_.axes[i] for type_ in given.values()) for i in range(rank)]
    if any(axis is None for axis in axes):
        return Refusal("it joins different tokens")
    frame = TensorType(tuple(axis for axis in axes if axis is not None))
    dim = context.dim(context.call["dim"], rank + 1)
    kind = "frames" if side_by_side(list(given.values())) else "unknown"
    new: Axis = (Atom(context.shape[dim], Origin(kind, context.call.node.name)),)
    result = TensorType((*frame.axes[:dim], new, *frame.axes[dim:]))
    return one(result, operands=demands(given, frame))
