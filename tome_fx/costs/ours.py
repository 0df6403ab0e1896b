"""What our own kernels do at once: such a call is as many kernels, whatever it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from tome_fx import ops
from tome_fx.kernels.blocks import match_launches
from tome_fx.kernels.choice import HALVES_AND_FLOAT
from tome_fx.passes.fuse import fuse


def own_kernels(node: Node, given: Any) -> int:
    """How many of our own kernels a call on these operands is; 0 if there are none for it."""
    first = next((leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)), None)
    if first is None or first.dtype not in HALVES_AND_FLOAT:
        return 0
    if node.target is ops.match_keys:
        return _matching(*given[0], **given[1])
    return int(node.target in (ops.merge, ops.merge_norm))


def _matching(keys: Tensor, r: int, parity: int = 0, front: int = 0, back: int = 0) -> int:
    tokens = keys.shape[2] - front - back
    return match_launches((tokens + 1 - parity) // 2, keys.shape[3])


def with_kernels(graph: Graph, origin: Mapping[Node, Node]) -> tuple[Graph, Mapping[Node, Node]]:
    """``graph`` as a device with such kernels has it, and what each of its nodes stands for."""
    copied: dict[Node, Node] = {}
    own = Graph()
    own.output(own.graph_copy(graph, copied))
    own = fuse(own, kernels=True)
    return own, {copied[new]: old for new, old in origin.items() if new in copied}
