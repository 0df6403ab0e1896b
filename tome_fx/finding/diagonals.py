"""Calls that tell each token from all others: an identity matrix beside pairs of tokens.

    kernel + sigma * eye, zz.T * (1 - eye), adjacency + eye

No group can follow one: its members are equal, and each of them is another one to the others. Of
logits that a softmax reads, and of weights of keys, it is a matter of masks and of totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node

from tome_fx.finding.telling import known_value
from tome_fx.graph.axes import TensorType
from tome_fx.graph.softmaxes import into_product, leads_to_softmax
from tome_fx.program import Program


def told_by_diagonals(
    program: Program, types: Mapping[Node, tuple[TensorType, ...]]
) -> frozenset[Node]:
    """The elementwise calls on pairs of tokens with such a table."""
    return frozenset(
        node
        for node in program.graph.nodes
        if _is_of_pairs(node, types)
        and not leads_to_softmax(node)
        and not into_product(node)
        and any(_is_identity(own, program, types) for own in node.all_input_nodes)
    )


def _is_of_pairs(node: Node, types: Mapping[Node, tuple[TensorType, ...]]) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return False
    ids = types[node][0].ids if types.get(node) else ()
    return 2 in Counter(ids).values()


def _is_identity(
    node: Node, program: Program, types: Mapping[Node, tuple[TensorType, ...]]
) -> bool:
    """Is a value of the model, off the diagonal of its last two axes, one number, and on it not?"""
    row = types.get(node, ())
    if node in program.of_images or not row or row[0].rank < 2:
        return False
    value = known_value(node, program)
    return value is not None and _differs_on_diagonal(value)


def _differs_on_diagonal(value: Tensor) -> bool:
    size = value.shape[-1]
    if value.shape[-2] != size or size < 2:
        return False
    off = value[..., ~torch.eye(size, dtype=torch.bool, device=value.device)]
    on = value.diagonal(dim1=-2, dim2=-1)
    return bool((off == off[..., :1]).all() and (on != off[..., :1]).any())
