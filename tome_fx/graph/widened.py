"""An op that computes in a wider dtype, as torchao asks for a product of int8 on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes
from torch.fx import Node

aten = torch.ops.aten
WIDENED = torch.ops.higher_order.out_dtype


def write_widened(node: Node) -> None:
    """``out_dtype(op, dtype, *args)`` as what torch runs for it: a product of its own, or casts."""
    op: Any = node.args[0]
    dtype: Any = node.args[1]
    args = node.args[2:]
    values = [a.meta["val"] if isinstance(a, Node) else a for a in args]
    if op is aten.mm.default and dtype == torch.int32 and _are_int8(values):
        node.target, node.args = aten._int_mm.default, args
        return
    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT
    wide, _ = elementwise_dtypes(*values, torch.ones(1, dtype=dtype), type_promotion_kind=kind)
    with node.graph.inserting_before(node):
        computed = node.graph.call_function(op, tuple(_cast(node, a, wide) for a in args))
    computed.meta = {**node.meta, "val": node.meta["val"].to(wide)}
    node.target, node.args = aten.to.dtype, (computed, dtype)


def _are_int8(values: list[Any]) -> bool:
    return all(isinstance(v, Tensor) and v.dtype is torch.int8 for v in values)


def _cast(reader: Node, value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Node) or value.meta["val"].dtype == dtype:
        return value
    cast = reader.graph.call_function(aten.to.dtype, (value, dtype))
    cast.meta = {**reader.meta, "val": value.meta["val"].to(dtype)}
    return cast
