"""The mask that an attention hides keys of each image by."""

from __future__ import annotations

import torch
from torch.fx import Node

from tome_fx.finding.rows import rows_of
from tome_fx.graph.axes import (
    Axis,
    Batch,
    TensorType,
    axis_of,
    extent,
    has_batch,
    has_stream,
    is_uniform,
)
from tome_fx.graph.calls import bind, tensor_operands
from tome_fx.program import Core, Findings

_STEPS = ("aten.mul", "aten.div", "aten._to_copy", "aten.to", "aten.reshape", "aten.contiguous",
          "aten.clamp", "aten.tanh", "aten.dropout", "aten.sub")  # fmt: skip


def masks_of(core: Core) -> list[tuple[Node, bool]]:
    """Values that tell which keys an attention looks at, and whether True hides a key there.

    Of a fused attention its mask; of a softmax what is added to its logits or filled into them.
    """
    call = bind(core.node)
    if core.kind == "sdpa":
        mask = call.get("attn_mask")
        return [(mask, False)] if isinstance(mask, Node) else []
    if core.kind != "softmax":
        return []
    found: list[tuple[Node, bool]] = []
    node = call["self"]
    while isinstance(node.target, torch._ops.OpOverload):
        inner = bind(node)
        if inner.name == "aten.add":
            found.extend((n, False) for _, n in tensor_operands(inner))
            break
        if inner.name == "aten.baddbmm":
            found.append((inner["self"], False))
            break
        if inner.name == "aten.masked_fill":
            found.append((inner["mask"], True))
        elif inner.name not in _STEPS:
            break
        node = inner["self"]
    return found


def padding_masks(findings: Findings) -> frozenset[Node]:
    """The masks that say which tokens of each image are padding, and what follows from the same.

    No group holds padding beside other tokens, so all of these are the same for its members.
    """
    found = set()
    for site in findings.sites:
        for core in site.cores:
            keys = axis_of(findings.types[core.key][0], site.stream)
            for node, _ in masks_of(core):
                types = findings.types.get(node, ())
                if types and row_of_images(types[0], keys) is not None:
                    found.add(node)
    if not found:
        return frozenset()
    rows = rows_of(next(iter(found)).graph, findings.types)
    known = {rows[node] for node in found if node in rows}
    return frozenset(found | {node for node, row in rows.items() if row in known})


def _of_images(axis: Axis) -> bool:
    """Images, each of them one or several times: on the axis of images and heads, say."""
    return bool(axis) and isinstance(axis[0], Batch) and (len(axis) == 1 or is_uniform(axis[1:]))


def row_of_images(type_: TensorType, keys: Axis) -> TensorType | None:
    """A mask's type with its last axis about ``keys``, if it is one row for each image."""
    if not type_.rank or extent(type_.axes[-1]) != extent(keys) or is_uniform(type_.axes[-1]):
        return None
    axes: list[Axis] = []
    images = 0
    for axis in type_.axes[:-1]:
        images += has_batch(axis)
        single = extent(axis) == 1 or is_uniform(axis)
        if not single and not _of_images(axis):
            return None
        axes.append(() if single else axis)
    last = type_.axes[-1]
    typed = has_stream(last) and [len(last), extent(last)] == [len(keys), extent(keys)]
    if images != 1 or has_batch(last) or (has_stream(last) and not typed):
        return None
    return TensorType((*axes, keys))
