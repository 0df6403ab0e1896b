"""Products of matrices as a decomposition writes them, as the one product that they were.

    a = reshape(clone(expand(x, [b, h, n, c])), [b * h, n, c])
    d = reshape(clone(expand(z, [b, h, c, m])), [b * h, c, m])
    y = reshape(bmm(a, d), [b, h, n, m])                       ->   y = matmul(x, z)

Folded so, a weight has a copy for each token, or an axis of heads is one with that of the images.
What is computed is the same; a product with a weight has its bits as the model has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import calls
from tome_fx.graph.extents import same_size

aten = torch.ops.aten
_VIEWS = ("aten.view", "aten.reshape", "aten._unsafe_view")


def write_products(graph: Graph) -> None:
    """Edit ``graph`` in place. Nodes hold fake tensors as ``meta["val"]``."""
    for node in list(graph.nodes):
        if node.target is aten.bmm.default:
            _unfold(node)


def _unfold(node: Node) -> None:
    """The views of a folded product as products of what it is of, where shapes agree."""
    expanded = [_before_folding(operand) for operand in node.args]
    if any(operand is None for operand in expanded):
        return
    leading = [operand.meta["val"].shape[:-2] for operand in expanded]
    a, b = (operand.args[0] for operand in expanded)
    if not _is_same(*leading) or min(x.meta["val"].dim() for x in (a, b)) < 2:
        return
    rows, columns = (x.meta["val"].shape for x in (a, b))
    images = torch.broadcast_shapes(rows[:-2], columns[:-2])  # type: ignore[no-untyped-call]
    shape = (*images, rows[-2], columns[-1])
    for view in list(node.users):
        if calls(view, _VIEWS) and _is_same(view.meta["val"].shape, shape):
            view.target, view.args, view.kwargs = aten.matmul.default, (a, b), {}


def _before_folding(operand: Any) -> Any:
    """What was expanded, and copied maybe, and then folded into the three axes of ``operand``.

    The axes in front are folded into one, and the two of the matrix are neither folded nor
    expanded. None if it was not.
    """
    if not calls(operand, _VIEWS):
        return None
    copied = operand.args[0]
    expanded = copied.args[0] if calls(copied, ("aten.clone",)) else copied
    if not calls(expanded, ("aten.expand",)):
        return None
    folded, whole, own = (x.meta["val"].shape for x in (operand, expanded, expanded.args[0]))
    kept = _is_same(folded[-2:], whole[-2:]) and _is_same(own[-2:], whole[-2:])
    return expanded if len(whole) > 2 and kept else None


def _is_same(shape: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(shape) == len(other) and all(map(same_size, shape, other))
