"""A rewritten program as one in which an image of one colour has the same token everywhere.

It is the captured program itself: in float64 throughout, so that what is equal is so to 1e-9, and
with padding that goes round in place of zeros, so that no patch sees a border.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

aten = torch.ops.aten

# No type that a model asks for by name is narrower.
_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


def widened(fast: nn.Module, borders: bool = True) -> GraphModule:
    """The program of ``fast`` in float64, weights and all; without ``borders``, padded around.

    ``fast`` stays as it is, and what it is made to do later does not change the result.
    """
    graph, root = Graph(), dict[str, Any]()
    graph.output(graph.graph_copy(fast.graph, {}))
    graph.set_codegen(fast.graph._codegen)
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            root[node.target] = _wide_value(fast, node.target)
        elif node.op == "call_function":
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _wide_type)
            if _is_of_default_type(node):
                node.kwargs = {**node.kwargs, "dtype": torch.float64}
            if not borders:
                node.target = _ROUND.get(node.target, node.target)
    return GraphModule(root, graph)


def _is_of_default_type(node: Node) -> bool:
    """Does it make numbers of nothing, in the type that torch takes where none is asked for?"""
    op, value = node.target, node.meta.get("val")
    if not isinstance(op, torch._ops.OpOverload) or not isinstance(value, Tensor):
        return False
    types = {argument.name: str(argument.type) for argument in op._schema.arguments}
    fresh = "dtype" in types and "Tensor" not in types.values()
    return fresh and value.dtype in _WIDE and node.kwargs.get("dtype") is None


def _wide_type(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _wide_value(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(_wide_type(value.dtype), copy=True)


def _padded(x: Tensor, pads: Any, mode: str = "constant", value: Any = None) -> Tensor:
    sides = list(zip(pads[::2], pads[1::2], strict=True))
    zeros = mode == "constant" and not value and x.dim() == 4 and x.is_floating_point()
    if not zeros or sum(map(any, sides)) > 2 or min(pads, default=0) < 0:
        return F.pad(x, pads, mode, value)
    for axis, (before, after) in enumerate(sides):
        dim = x.dim() - 1 - axis
        if max(before, after) > x.shape[dim]:
            return F.pad(x, pads, mode, value)
        first = x.narrow(dim, x.shape[dim] - before, before)
        x = torch.cat([first, x, x.narrow(dim, 0, after)], dim) if before + after else x
    return x


def _padded_with(x: Tensor, pads: Any, value: Any = 0) -> Tensor:
    return _padded(x, pads, "constant", value)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
               padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Tensor:  # fmt: skip
    steps = dilation if isinstance(dilation, (tuple, list)) else [dilation] * 2
    reach = [step * (size - 1) for step, size in zip(steps, weight.shape[2:], strict=True)]
    if padding == "valid":
        padding = 0
    if padding == "same":
        sides = [(whole // 2, whole - whole // 2) for whole in reach]
    else:
        given = padding if isinstance(padding, (tuple, list)) else [padding]
        sides = [(each, each) for each in (given * 2 if len(given) == 1 else given)]
    x = _padded(x, [side for pair in reversed(sides) for side in pair])
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


def _unfolded(x: Tensor, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    down, across = padding
    return F.unfold(_padded(x, [across, across, down, down]), kernel, dilation, 0, stride)


def _folded(x: Tensor, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Tensor:
    """What would fall over the edge of the map is added on its other side."""
    wide = [length + 2 * pad for length, pad in zip(size, padding, strict=True)]
    whole = F.fold(x, wide, kernel, dilation, 0, stride)
    for dim, pad, length in zip((-2, -1), padding, size, strict=True):
        inside = whole.narrow(dim, pad, length).clone()
        inside.narrow(dim, length - pad, pad).add_(whole.narrow(dim, 0, pad))
        inside.narrow(dim, 0, pad).add_(whole.narrow(dim, length + pad, pad))
        whole = inside
    return whole


_ROUND = {
    aten.pad.default: _padded,
    aten.constant_pad_nd.default: _padded_with,
    aten.conv2d.default: _convolved,
    aten.conv2d.padding: _convolved,
    aten.im2col.default: _unfolded,
    aten.col2im.default: _folded,
}
