"""What our own kernels do at once: such a call is as many kernels, whatever it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from tome_fx import ops
from tome_fx.kernels.choice import HALVES_AND_FLOAT
from tome_fx.passes.fuse import fuse

# Matching: unit keys, the best partner of each token, the choice of the best pairs.
_KERNELS: Mapping[Any, int] = {ops.match_keys: 3, ops.merge: 1, ops.merge_norm: 1}


def own_kernels(node: Node, given: Any) -> int:
    """How many of our own kernels a call on these operands is; 0 if there are none for it."""
    tensors = (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
    first = next(tensors, None)
    served = first is not None and first.dtype in HALVES_AND_FLOAT
    return _KERNELS.get(node.target, 0) if served else 0


def with_kernels(graph: Graph, origin: Mapping[Node, Node]) -> tuple[Graph, Mapping[Node, Node]]:
    """``graph`` as a device with such kernels has it, and what each of its nodes stands for."""
    copied: dict[Node, Node] = {}
    own = Graph()
    own.output(own.graph_copy(graph, copied))
    own = fuse(own, kernels=True)
    return own, {copied[new]: old for new, old in origin.items() if new in copied}
