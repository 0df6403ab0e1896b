"""Frames in values that are not about tokens, as masks are: named by where they meet these."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch.fx import Node

from tome_fx.finding.infer import Types
from tome_fx.graph.axes import Atom, Factor, Frames, TensorType
from tome_fx.graph.calls import Call, bind, tensor_operands
from tome_fx.graph.frames import frames_of

_Types = Mapping[Node, Types]


def names_of_frames(types: _Types) -> Mapping[Atom, Frames]:
    """Frames by the atoms that stand in their places, in values that meet their tokens.

    A mask that is another input has atoms of its own. What meets heads as well is left out.
    """
    met: dict[Atom, set[Factor]] = {}
    for node in types:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        for one, other in itertools.permutations(_side_by_side(bind(node), types), 2):
            if not frames_of(one):
                continue
            for frame in frames_of(one):
                met.setdefault(Atom(frame.extent, frame.origin), set()).add(frame)
            axes = zip(reversed(one.axes), reversed(other.axes), strict=False)
            for axis, own in (pair for pair in axes if len(pair[0]) == len(pair[1])):
                for goal, factor in zip(axis, own, strict=True):
                    if isinstance(factor, Atom) and not isinstance(factor, Frames):
                        met.setdefault(factor, set()).add(goal)
    return {
        atom: frame
        for atom, goals in met.items()
        for frame in goals
        if len(goals) == 1 and isinstance(frame, Frames)
    }


def _side_by_side(call: Call, types: _Types) -> list[TensorType]:
    """The types of operands that broadcast; of an attention its mask, and what that is added to."""
    given = {path: types[n][0] for path, n in tensor_operands(call) if types.get(n)}
    if call.name == "aten.scaled_dot_product_attention":
        if "attn_mask" not in given or not {"query", "key"} <= set(given):
            return []
        query, key = given["query"], given["key"]
        return [TensorType((*query.axes[:-1], key.axes[-2])), given["attn_mask"]]
    plain = torch.Tag.pointwise in call.op.tags or call.name in ("aten.masked_fill", "aten.where")
    return list(given.values()) if plain else []
