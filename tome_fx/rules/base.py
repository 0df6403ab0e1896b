"""What a rule is given and what it answers.

A rule is a pure function from a :class:`Context` (the call and the types of its operands) to
either :class:`Lifted` or :class:`Refusal`. Before a rule runs, all its operands that share a
stream stand at the same level. Refusing is always safe: the operands are unmerged and the op runs
on the original's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch.fx import Node

from tome_fx.graph.axes import Axis, TensorType, is_merged_axis, map_type
from tome_fx.graph.calls import Call


@dataclass(frozen=True)
class Context:
    """One call with its operands' types.

    Attributes:
        call: the ATen call, arguments bound by name.
        types: type of each tensor operand by path (``self``, ``tensors.1``).
        shapes: extents of each output of the captured program.
        sizes: the axis that a symbolic size measures, by node; absent if it is not just one axis.
        one_image: the program is for one image, whose values need no axis of images.
        tiles: slices that cut rows of such a program into stretches, each an image maybe.
    """

    call: Call
    types: Mapping[str, TensorType]
    shapes: tuple[tuple[int, ...], ...]
    sizes: Mapping[Node, Axis]
    one_image: bool = False
    tiles: Set[Node] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    def dtype(self, path: str) -> torch.dtype:
        """dtype of an operand in the captured program."""
        name, _, index = path.partition(".")
        value = self.call[name]
        node = value[int(index)] if index else value
        dtype: torch.dtype = node.meta["val"].dtype
        return dtype

    def dim(self, value: int, rank: int) -> int:
        """A dimension counted from the front."""
        return value % rank if rank else 0


class Builder(Protocol):
    """What a rule's ``build`` may use to emit nodes."""

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Append a call; the original node's place in the source is kept."""
        ...

    def size_along(self, type_: TensorType, axis: int) -> Node | None:
        """Group sizes as a float tensor that broadcasts against ``type_``; None if all are 1."""
        ...

    def key_size_along(self, type_: TensorType, axis: int) -> Node | None:
        """:meth:`size_along` for the keys of an attention; None also where it is switched off."""
        ...


Operands: TypeAlias = Mapping[str, Any]
Build: TypeAlias = Callable[[Builder, Operands], Node]


@dataclass(frozen=True)
class Lifted:
    """How a call runs on merged tokens.

    Attributes:
        results: type of each output.
        operands: types that operands must be brought to first, by path; absent means as they are.
        arguments: literals to change, by path.
        build: emits something else than the op itself; gets the operands by path.
        tells_apart: what comes out differs from place to place though equal tokens go in.
        unmerges: why an operand comes with all its tokens along one of its axes; for the report.
    """

    results: tuple[TensorType, ...]
    operands: Mapping[str, TensorType] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    build: Build | None = None
    tells_apart: bool = False
    unmerges: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a rule cannot lift a call; becomes the reason of an unmerge in the report."""

    reason: str


Rule: TypeAlias = Callable[[Context], "Lifted | Refusal"]


def one(type_: TensorType, **kwargs: Any) -> Lifted:
    """A :class:`Lifted` with one output."""
    return Lifted((type_,), **kwargs)


def merged_along(type_: TensorType, axes: tuple[int, ...]) -> bool:
    """Does any of ``axes`` hold merged tokens?"""
    return any(is_merged_axis(type_.axes[i]) for i in axes)


def as_intensive(type_: TensorType) -> TensorType:
    """``type_`` with every token axis per member."""
    return map_type(type_, lambda stream: replace(stream, extensive=False))
