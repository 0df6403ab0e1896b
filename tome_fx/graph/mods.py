"""What FlexAttention asks of each score, for all scores at once.

A ``score_mod`` or ``mask_mod`` is a program of scalars: a score, and the numbers ``b, h, q, k`` of
its image, head, query and key. Here the numbers are ranges ``[B, 1, 1, 1]`` to ``[1, 1, 1, K]``,
and each op is done once, on values that have 1 wherever they are the same.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from tome_fx.graph.calls import bind, calls, writes
from tome_fx.graph.emitting import emit
from tome_fx.graph.extents import same_size, size_before, tensor_value
from tome_fx.graph.inplace import make_plain
from tome_fx.graph.provenance import origin_of

aten = torch.ops.aten
AXES = 4
# Ops of each element by itself that do not say so of themselves.
_PLAIN = frozenset(
    f"aten.{name}" for name in
    ("to", "_to_copy", "type_as", "contiguous", "__and__", "__or__", "__xor__", "floor_divide",
     "true_divide", "divide", "multiply", "subtract", "rsub", "negative", "absolute", "arctan2",
     "greater", "greater_equal", "less", "less_equal", "not_equal", "masked_fill", "where")
)  # fmt: skip
_FILLED = {"aten.new_ones": 1, "aten.new_zeros": 0, "aten.ones_like": 1, "aten.zeros_like": 0,
           "aten.new_full": "fill_value", "aten.full_like": "fill_value"}  # fmt: skip
# Of a value that nothing writes to they are that value.
_SAME = (aten.detach_.default, aten.detach.default, aten.alias.default, aten.clone.default,
         aten.lift_fresh_copy.default)  # fmt: skip
_INDEX = "torch._dynamo._trace_wrapped_higher_order_op.ModIndex"


class UnreadError(Exception):
    """A program of scalars does what has no form for all at once."""


class Writer:
    """Writes nodes in front of a call of ``flex_attention(query, key, ..)``, with their values.

    Attributes:
        sizes: how many images, heads, queries and keys there are.
    """

    def __init__(self, module: GraphModule, node: Node, query: Node, key: Node) -> None:
        self._module, self._node, self._rows = module, node, (query, key)
        self._origin = origin_of(node)
        value = query.meta["val"]
        self._mode = detect_fake_mode([value])
        self._device = value.device
        self.sizes = (*value.shape[:3], key.meta["val"].shape[2])
        self._ranges: dict[int, Node] = {}

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call of an op, its value being what fake tensors make of it."""
        return emit(self._node, self._mode, target, *args, **kwargs)

    def attention(self, query: Node, key: Node, value: Node, mask: Any, **options: Any) -> Node:
        """Fused attention, without the questions that the op asks of sizes."""
        op = aten.scaled_dot_product_attention.default
        made = self._node.graph.call_function(op, (query, key, value, mask), options)
        return self._as_product(made, query, value)

    def constant(self, value: Tensor) -> Node:
        """A tensor that one of the programs makes of numbers."""
        taken = {name for name, _ in self._module.named_buffers(recurse=False)}
        name = next(n for i in itertools.count() if (n := f"_table_{i}") not in taken)
        self._module.register_buffer(name, value, persistent=False)
        made = self._node.graph.get_attr(name)
        known = value if self._mode is None else self._mode.from_tensor(value)
        made.meta = {**self._origin, "val": known}
        return made

    def product(self, left: Node, right: Node) -> Node:
        """``left @ right``, without the questions that the op asks of their sizes."""
        made = self._node.graph.call_function(aten.matmul.default, (left, right))
        return self._as_product(made, left, right)

    def _as_product(self, made: Node, left: Node, right: Node) -> Node:
        value = left.meta["val"]
        shape = (*value.shape[:-1], right.meta["val"].shape[-1])
        with self._mode or contextlib.nullcontext():
            made.meta = {**self._origin, "val": value.new_empty(shape)}
        return made

    def size(self, axis: int) -> Node | int:
        """How many images, heads, queries or keys there are."""
        size = size_before(self.sizes[axis], self._node)
        if size is None:
            rows, dim = (self._rows[0], axis) if axis < AXES - 1 else (self._rows[1], axis - 1)
            size = self._node.graph.call_function(aten.sym_size.int, (rows, dim))
            size.meta = {**self._origin, "val": self.sizes[axis]}
        return size

    def range(self, axis: int) -> Node:
        """The numbers of images, heads, queries or keys, on their own axis of four."""
        if axis not in self._ranges:
            numbers = self.emit(aten.arange.default, self.size(axis), device=self._device)
            shape = [-1 if each == axis else 1 for each in range(AXES)]
            self._ranges[axis] = self.emit(aten.reshape.default, numbers, shape)
        return self._ranges[axis]

    def same_everywhere(self, value: Any, dtype: torch.dtype) -> Node:
        """A number for all scores."""
        shape = [1] * AXES
        return self.emit(aten.full.default, shape, value, dtype=dtype, device=self._device)

    def looked_up(self, table: Node, places: Sequence[Any]) -> Node:
        """``table[places]``: its own axes put where the numbers are that it is looked up by."""
        for axis in reversed([i for i, place in enumerate(places) if isinstance(place, int)]):
            table = self.emit(aten.select.int, table, axis, places[axis])
        left = [place for place in places if not isinstance(place, int)]
        truths = any(place.meta["val"].dtype == torch.bool for place in left)
        if truths or len(left) != table.meta["val"].dim():
            raise UnreadError
        if not left:
            return self.emit(aten.reshape.default, table, [1] * AXES)
        axes = [self._axis(place) for place in left]
        fits = None not in axes and len(set(axes)) == len(axes)
        cut = self._cut(table, [axis for axis in axes if axis is not None]) if fits else None
        if cut is None:
            return self.emit(aten.index.Tensor, table, list(left))
        order = sorted(range(len(axes)), key=lambda place: axes[place] or 0)
        if order != list(range(len(axes))):
            cut = self.emit(aten.permute.default, cut, order)
        for axis in range(AXES):
            if axis not in axes:
                cut = self.emit(aten.unsqueeze.default, cut, axis)
        return cut

    def _axis(self, place: Any) -> int | None:
        return next((axis for axis, node in self._ranges.items() if node is place), None)

    def _cut(self, table: Node, axes: Sequence[int]) -> Node | None:
        """The first places of a table on each of its axes; None if it may not have as many."""
        for dim, axis in enumerate(axes):
            size, wanted = table.meta["val"].shape[dim], self.sizes[axis]
            if same_size(size, wanted):
                continue
            if not isinstance(size, int) or not isinstance(wanted, int) or size < wanted:
                return None
            table = self.emit(aten.slice.Tensor, table, dim, 0, wanted)
        return table


@dataclass(frozen=True)
class _Partly:
    """A table that is looked up axis by axis, ``table[a][b]``, and the places so far."""

    table: Node
    places: tuple[Any, ...]


class Mod:
    """A program of scalars, and what its operands are for all scores.

    Args:
        given: for each placeholder a node ``[B, H, Q, K]`` (each may be 1), or one of another shape
            that it looks up in, or a number, or what makes one where it is asked for.
    """

    def __init__(self, module: GraphModule, writer: Writer, given: Sequence[Any]) -> None:
        self._module, self._writer = module, writer
        self._graph = make_plain(copy.deepcopy(module.graph))
        places = self._graph.find_nodes(op="placeholder")
        self.score = places[0]
        self.result: Any = self._graph.output_node().args[0]
        self._known: dict[Node, Any] = {}
        self._given = dict(zip(places, given, strict=True))

    def value(self, inner: Any) -> Any:
        """What a node, or a number, of the program is for all scores.

        Raises:
            UnreadError: it is made by an op that is not done for each score by itself.
        """
        if not isinstance(inner, Node):
            return inner
        if inner not in self._known:
            given = self._given.get(inner)
            value = given() if callable(given) else given
            self._known[inner] = self._wide(value) if inner in self._given else self._read(inner)
        return self._known[inner]

    def of(self, scores: Node) -> Any:
        """What the program makes of ``scores [B, H, Q, K]``."""
        self._known[self.score] = scores
        return self.value(self.result)

    def part(self) -> set[Node]:
        """The nodes that the score has a part in."""
        found = {self.score}
        for node in self._graph.nodes:
            if any(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def _read(self, inner: Node) -> Any:
        if inner.op == "get_attr":
            return self._constant(inner)
        if inner.target in _SAME:
            return self.value(inner.args[0])
        places = self._places(inner)
        if places is not None:
            return self._look_up(*places)
        if not isinstance(inner.target, torch._ops.OpOverload) or writes(inner):
            raise UnreadError
        return self._computed(inner, inner.target)

    def _places(self, inner: Node) -> Sequence[Any] | None:
        """The table that a node looks something up in, and the places."""
        args = inner.args
        if inner.target is torch.ops.higher_order.flat_apply and _INDEX in args:
            return args[args.index(_INDEX) + 1 :]
        if calls(inner, ("aten.index",)):
            places = cast(Sequence[Any], args[1])
            numbers = [isinstance(n, Node) and not n.meta["val"].dim() for n in places]
            return (args[0], *places) if all(numbers) else None
        if inner.target is aten.select.int and isinstance(self.value(args[0]), _Partly):
            return None if args[1] else (args[0], args[2])
        return None

    def _computed(self, inner: Node, op: torch._ops.OpOverload) -> Any:
        operands = [node for node in inner.all_input_nodes if tensor_value(node) is not None]
        if any(isinstance(self.value(node), _Partly) for node in operands):
            raise UnreadError
        if all(node.meta["val"].dim() for node in operands) or not operands:
            # Made of what it looks up in alone, as it is; what is one number is that everywhere.
            args, kwargs = map_arg((inner.args, inner.kwargs), self.value)
            return self._wide(self._writer.emit(op, *args, **kwargs))
        filled = next((_FILLED[name] for name in _FILLED if calls(inner, (name,))), None)
        if filled is not None and not inner.meta["val"].dim():
            dtype = inner.meta["val"].dtype
            number = bind(inner)["fill_value"] if filled == "fill_value" else filled
            return self._writer.same_everywhere(torch.tensor(number, dtype=dtype).item(), dtype)
        plain = torch.Tag.pointwise in op.tags or calls(inner, _PLAIN)
        if not plain or any(node.meta["val"].dim() for node in (inner, *operands)):
            raise UnreadError
        args, kwargs = map_arg((inner.args, inner.kwargs), self.value)
        return self._writer.emit(op, *args, **kwargs)

    def _look_up(self, table: Any, *places: Any) -> Any:
        if any(place is None for place in places) or not isinstance(table, Node):
            raise UnreadError
        source: Any = self.value(table)
        known = [self.value(place) for place in places]
        fixed = [isinstance(place, Node) and calls(place, ("aten.full",)) for place in known]
        numbers = [place.args[1] if at else place for place, at in zip(known, fixed, strict=True)]
        if any(isinstance(number, bool) for number in numbers):
            raise UnreadError
        if isinstance(source, _Partly):
            source, numbers = source.table, [*source.places, *numbers]
        if len(numbers) < source.meta["val"].dim():
            if not all(isinstance(number, int) for number in numbers):
                return _Partly(source, tuple(numbers))
            for number in numbers:
                source = self._writer.emit(aten.select.int, source, 0, number)
            return source
        return self._writer.looked_up(source, numbers)

    def _constant(self, inner: Node) -> Node:
        value: Any = getattr(self._module, str(inner.target))
        if not isinstance(value, Tensor):
            raise UnreadError
        if value.dim():
            return self._writer.constant(value)
        return self._writer.same_everywhere(value.item(), value.dtype)

    def _wide(self, node: Any) -> Any:
        """One number as such an one for all scores; what has axes of its own keeps them."""
        value = node.meta.get("val") if isinstance(node, Node) else None
        if not isinstance(value, Tensor) or value.dim():
            return node
        return self._writer.emit(aten.reshape.default, node, [1] * AXES)
