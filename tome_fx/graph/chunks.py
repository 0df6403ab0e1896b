"""Attention that is computed chunk by chunk of its queries, to save memory, as what it is.

    cat([f(q[:, :64], k, v), f(q[:, 64:], k, v)], 1)   ->   f(q, k, v)

Each chunk would be a row of queries of its own. Fused attention has no weights to save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from tome_fx.graph.calls import UNTAGGED, Call, bind, calls, tensor_operands, unbind
from tome_fx.graph.cuts import VIEWS, cut_of, moved
from tome_fx.graph.extents import Extents, settled, tensor_value
from tome_fx.graph.structure import is_alike, is_random

# The axis of each operand that the axis of a result is, by path; of others it has none.
Axes: TypeAlias = dict[str, int]
Build: TypeAlias = Callable[[], Node]
Parts: TypeAlias = tuple[Node, ...]
_EACH = {f"aten.{name}" for name in f"to _to_copy clone contiguous masked_fill {UNTAGGED}".split()}
_SHAPED = ("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten", "aten.unflatten")
_CUTS = ("aten.slice", "aten.narrow", "aten.select")
_OVER = ("aten.sum", "aten.mean", "aten.amax", "aten.logsumexp")
_OVER_ONE = ("aten.softmax", "aten._softmax", "aten.log_softmax")
_PRODUCTS = ("aten.matmul", "aten.bmm")
_ATTENTION = "aten.scaled_dot_product_attention"


def join_chunks(graph: Graph) -> None:
    """Edit ``graph``, whose nodes have their values."""
    for node in list(graph.nodes):
        if calls(node, ("aten.cat",)):
            call = bind(node)
            whole = at_once(call["tensors"], call["dim"], node)
            if whole is not None:
                node.replace_all_uses_with(whole)
                graph.erase_node(node)


def at_once(parts: Sequence[Any], dim: int, before: Node) -> Node | None:
    """What parts that lie behind each other along an axis are, computed at once.

    Its nodes are put before ``before``. None, and no node, where the parts are not what one
    function, an attention say, makes of all the stretches of a value.
    """
    nodes = tuple(p for p in parts if isinstance(p, Node) and tensor_value(p) is not None)
    if len(nodes) < max(2, len(parts)):
        return None
    axis = dim % nodes[0].meta["val"].dim()
    # Along the batch, whose size is not to be asked for, parts are other images.
    if not all(isinstance(_size(node, axis), int) for node in nodes):
        return None
    joined = _Joined()
    build = joined.whole(nodes, axis)
    if build is None or not joined.of_product:
        return None
    with before.graph.inserting_before(before):
        whole = build()
    whole.meta["at_once"] = joined.of_written
    return whole


def written_at_once(graph: Graph) -> int:
    """How many rows of chunks are computed at once by attention that is written out."""
    return sum(node.meta.get("at_once", False) for node in graph.nodes)


class _Joined:
    """What is found about the parts of one row."""

    def __init__(self) -> None:
        self.of_product = self.of_written = False
        self._known: dict[tuple[Parts, int], Build | None] = {}

    def whole(self, parts: Parts, axis: int) -> Build | None:
        """How to build what the parts are cut out of, or would be."""
        if (parts, axis) not in self._known:
            row = _row_of(parts, axis)
            build = self._computed(parts, axis) if row is None else lambda: row
            self._known[parts, axis] = _once(build)
        return self._known[parts, axis]

    def _computed(self, parts: Parts, axis: int) -> Build | None:
        if len({part.target for part in parts}) > 1 or parts[0].op != "call_function":
            return None
        op = parts[0].target
        if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
            return None
        rows, first = [bind(part) for part in parts], bind(parts[0])
        axes = [_axes_of(call, axis) for call in rows]
        if axes[0] is None or any(own != axes[0] for own in axes):
            return None
        builds: dict[str, Build] = {}
        sizes = [_size(part, axis) for part in parts]
        for path, operand in tensor_operands(first):
            operands = tuple(_at(call, path) for call in rows)
            if not all(isinstance(one, Node) for one in operands):
                return None
            place = axes[0].get(path)
            if all(is_alike(operand, one) for one in operands[1:]):
                if place is not None and _size(operand, place) != 1:
                    return None
                continue
            if place is None or [_size(one, place) for one in operands] != sizes:
                return None
            build = self.whole(operands, place)
            if build is None:
                return None
            builds[path] = build
        given = [_plain(call, axis) for call in rows]
        if not builds or any(one != given[0] for one in given):
            return None
        self.of_written |= first.name in _PRODUCTS
        self.of_product |= first.name in (*_PRODUCTS, _ATTENTION)
        return lambda: _emitted(first, builds, axis, sum(sizes))


def _once(build: Build | None) -> Build | None:
    made: list[Node] = []

    def built() -> Node:
        if not made:
            assert build is not None
            made.append(build())
        return made[0]

    return None if build is None else built


def _row_of(parts: Parts, axis: int) -> Node | None:
    """What the parts are all the stretches of, along an axis and in order."""
    cuts = [cut_of(part) for part in parts]
    first, end = cuts[0], 0
    for cut in cuts:
        if cut is None or first is None or not is_alike(first.row, cut.row):
            return None
        if (cut.dim, cut.start) != (axis, end):
            return None
        end = cut.end
    return first.row if first is not None and end == _size(first.row, axis) else None


def _size(node: Node, axis: int) -> Any:
    return settled(node.meta["val"].shape[axis])


def _emitted(call: Call, builds: dict[str, Build], axis: int, size: int) -> Node:
    """The call on whole operands."""
    changed: dict[str, Any] = {path: build() for path, build in builds.items()}
    if (name := _sizes(call)) is not None and call[name][axis] != -1:
        changed[f"{name}.{axis}"] = size
    args, kwargs = unbind(call, changed)
    node = call.node.graph.call_function(call.op, args, kwargs)
    # Computing it might fix the batch: some kernels ask how large it is.
    part = call.node.meta["val"]
    shape = [size if place == axis else one for place, one in enumerate(part.shape)]
    node.meta = {**call.node.meta, "val": part.new_empty(shape)}
    return node


def _at(call: Call, path: str) -> Any:
    name, _, index = path.partition(".")
    value = call.get(name)
    if not index:
        return value
    return value[int(index)] if int(index) < len(value) else None


def _sizes(call: Call) -> str | None:
    """The argument with the sizes of the result."""
    return "size" if "size" in call.arguments else "shape" if "shape" in call.arguments else None


def _plain(call: Call, axis: int) -> Any:
    """The arguments that are no values, without the size along an axis of the result."""
    name = _sizes(call)
    told: dict[str, Any] = {}
    for key, value in call.arguments.items():
        row = list(value) if isinstance(value, (list, tuple)) else value
        if key == name:
            row[axis] = -1
        told[key] = map_arg(row, lambda n: "value")
    return {key: (type(value), value) for key, value in told.items()}


def _axes_of(call: Call, axis: int) -> Axes | None:
    """Where the axis of a result is in operands along which the call is computed place by place."""
    after = call.node.meta["val"]
    if call.name == _ATTENTION:
        return _of_attention(call, axis)
    if is_random(call.op):
        return None
    if torch.Tag.pointwise in call.op.tags or call.name in _EACH:
        found = {}
        for path, node in tensor_operands(call):
            value = tensor_value(node)
            if value is not None and axis - after.dim() + value.dim() >= 0:
                found[path] = axis - after.dim() + value.dim()
        return found
    if call.name in _PRODUCTS:
        return _of_product(call, axis)
    if call.name == "aten.linear":
        return {"input": axis} if axis < after.dim() - 1 else None
    if call.name == "aten.layer_norm":
        return {"input": axis} if axis < after.dim() - len(call["normalized_shape"]) else None
    if call.name in _OVER_ONE:
        return {"self": axis} if axis != call["dim"] % after.dim() else None
    place = _of_moved(call, axis)
    return None if place is None else {"self": place}


def _of_attention(call: Call, axis: int) -> Axes | None:
    rank = call.node.meta["val"].dim()
    if axis != rank - 2 or call["is_causal"] or call["dropout_p"]:
        return None
    mask = call["attn_mask"]
    own = {"attn_mask": mask.meta["val"].dim() - 2} if isinstance(mask, Node) else {}
    return {"query": call["query"].meta["val"].dim() - 2, **own}


def _of_product(call: Call, axis: int) -> Axes | None:
    rank = call.node.meta["val"].dim()
    (left, a), (right, b) = tensor_operands(call)
    if min(a.meta["val"].dim(), b.meta["val"].dim()) < 2 or axis < rank - 2:
        return None
    return {left: a.meta["val"].dim() - 2} if axis == rank - 2 else {right: b.meta["val"].dim() - 1}


def _of_moved(call: Call, axis: int) -> int | None:
    """Where an axis was before a change of layout, or a cut or a reduction along others."""
    operand = call.arguments.get("self")
    if not isinstance(operand, Node) or tensor_value(operand) is None:
        return None
    rank = operand.meta["val"].dim()
    if calls(call.node, VIEWS):
        places = {moved(call.node, place): place for place in range(rank)}
        return places.get(axis)
    if call.name in _CUTS:
        dim = call["dim"] % rank
        place = axis + int(call.name == "aten.select" and dim <= axis)
        return None if place == dim else place
    if call.name == "aten.unflatten" and call["dim"] % rank <= axis < call["dim"] % rank + len(
        call["sizes"]
    ):
        return None
    if call.name in _SHAPED:
        return _of_shape(operand.meta["val"], call.node.meta["val"], axis)
    if call.name in _OVER and call.get("dim"):
        dims = call["dim"] if isinstance(call["dim"], (list, tuple)) else [call["dim"]]
        over = {dim % rank for dim in dims}
        left = [place for place in range(rank) if call["keepdim"] or place not in over]
        return None if left[axis] in over else left[axis]
    return None


def _of_shape(before: torch.Tensor, after: torch.Tensor, axis: int) -> int | None:
    """The axis that a reshape leaves as it is; none where that is an axis of one place."""
    extents = Extents()
    old, new = extents.shape(before), extents.shape(after)
    if new[axis] == 1:
        return None
    same = (
        place
        for place, size in enumerate(old)
        if size == new[axis] and math.prod(old[:place]) == math.prod(new[:axis])
    )
    return next(same, None)
