"""The mask that an attention hides keys of each image by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.fx import Node

from tome_fx.finding.mask_types import (
    mask_type,
    of_frames,
    pairs_of_images,
    row_of_images,
    views_of,
)
from tome_fx.finding.parts import Part, parts_of
from tome_fx.finding.rows import rows_of
from tome_fx.graph.axes import TensorType, holds
from tome_fx.graph.calls import Call, bind, calls, tensor_operands
from tome_fx.graph.cones import read_values
from tome_fx.graph.convolutions import CONVOLUTIONS
from tome_fx.graph.extents import is_truth, tensor_value
from tome_fx.graph.frames import per_of, row_of
from tome_fx.graph.packed import PACKED
from tome_fx.graph.softmaxes import SOFTMAXES
from tome_fx.graph.values import needed_for
from tome_fx.program import Core, Findings, Program

_STEPS = ("aten.mul", "aten.div", "aten._to_copy", "aten.to", "aten.reshape", "aten.contiguous",
          "aten.clamp", "aten.tanh", "aten.dropout", "aten.sub", "aten.flatten", "aten.unflatten",
          "aten.unsqueeze", "aten.squeeze", "aten.sigmoid", "aten.relu", "aten.exp",
          "aten.square", "aten.pow", "aten.log_softmax")  # fmt: skip
# What comes out of these was made, not given; images come in by one of them.
_PRODUCTS = ("aten.linear", "aten.matmul", "aten.mm", "aten.bmm", "aten.einsum", "aten.addmm",
             "aten.baddbmm", *PACKED, *CONVOLUTIONS)  # fmt: skip
# What says the same of each place.
_KEEPS = ("aten._to_copy", "aten.to", "aten.unsqueeze", "aten.squeeze", "aten.expand",
          "aten.reshape", "aten.view", "aten.contiguous", "aten.clone")  # fmt: skip
_FILLS = ("aten.full", "aten.new_full", "aten.zeros_like")

_Row = TypeVar("_Row")


def masks_of(core: Core) -> list[tuple[Node, bool]]:
    """Values that tell which keys an attention looks at, and whether True hides a key there.

    Of a fused attention its mask; of a softmax what is added to its logits or filled into them, the
    nearest first.
    """
    kind = kind_of(core)
    if kind == "sdpa":
        mask = bind(core.node).get("attn_mask")
        return [(mask, False)] if isinstance(mask, Node) else []
    found: list[tuple[Node, bool]] = []
    for call in _calls_before(core):
        found += _applied(call)[0]
        if kind == "weights":  # 0 hides where no softmax follows
            found += _factors(call)
    return found


def parts_before(core: Core) -> list[Part]:
    """What the mask of a fused attention, or the logits of a softmax, are put together from.

    Each of them hides a key from an attention where it hides it.
    """
    kind = kind_of(core)
    if kind not in ("sdpa", "softmax"):
        return []
    whole = bind(core.node).get("attn_mask" if kind == "sdpa" else "self")
    return parts_of(whole) if isinstance(whole, Node) else []


def all_masks_of(core: Core) -> list[Part]:
    """The masks, and behind them what they are put together from."""
    masks = (Part(*mask) for mask in masks_of(core))
    return list(dict.fromkeys([*masks, *parts_before(core)]))


def rows_before(core: Core, read: Callable[[Node, int], _Row | None]) -> list[tuple[_Row, bool]]:
    """What ``read`` makes of parts with a row for each image, and whether True hides there.

    All of them hide; none is made of another. Where none is sure to hide, that of the nearest mask.
    ``read`` gives None of what is no such row; it is told how many of the last axes are the mask's.
    """
    found: list[tuple[_Row, bool]] = []
    below: set[Node] = set()
    for node, hides, own in parts_before(core):
        row = read(node, own) if own and node not in below else None
        if row is not None:
            found.append((row, hides))
            below.update(inner.node for inner in parts_of(node, hides))
    masks = ((read(node, 2), hides) for node, hides in masks_of(core)) if not found else ()
    nearest = next(((row, hides) for row, hides in masks if row is not None), None)
    return found if nearest is None else [nearest]


def factors_of(core: Core) -> list[Node]:
    """What logits, or weights that no softmax made, are multiplied by: products of others too."""
    found = (call for call in _calls_before(core) if call.name == "aten.mul")
    return [node for call in found for _, node in tensor_operands(call)]


def kind_of(core: Core) -> str:
    """The kind, of an attention inside a residual value too."""
    if core.kind != "inner":
        return core.kind
    if calls(core.node, ("aten.scaled_dot_product_attention",)):
        return "sdpa"
    return "softmax" if calls(core.node, SOFTMAXES) else "weights"


def _calls_before(core: Core) -> Iterator[Call]:
    """The calls that lead back from a softmax, or from weights without one, to their product."""
    kind = kind_of(core)
    if kind not in ("softmax", "weights"):
        return
    waiting: list[Node] = [bind(core.node)["self"] if kind == "softmax" else core.node]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node.target, torch._ops.OpOverload):
            call = bind(node)
            yield call
            waiting += _applied(call)[1]


def may_hide(mask: Node) -> bool:
    """Does a value beside logits come of a truth or of an input as it was given?

    Else it is a bias: products of queries and tables, or a table, that hides nothing.
    """
    return is_of_truth(mask, inputs=True)


def is_of_truth(mask: Node, inputs: bool = False) -> bool:
    """Does a value come of a truth about places, or, if ``inputs``, of an input as it was given?"""
    return _is_of_truth(mask, inputs, {})


def _is_of_truth(mask: Node, inputs: bool, products: dict[Node, bool]) -> bool:
    waiting, seen = [mask], {mask}
    while waiting:
        node = waiting.pop()
        given = inputs and node.op == "placeholder"
        if given or is_truth(node):
            return True
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        before = read_values(node)
        if calls(node, _PRODUCTS):
            # The product of two truths is one: which of two places are both seen.
            if node not in products:
                products[node] = all(_is_of_truth(n, False, products) for n in before)
            if products[node]:
                return True
            continue
        waiting += [source for source in before if source not in seen]
        seen.update(before)
    return False


def tells_views(mask: Node) -> bool:
    """Does a mask come of a truth, or of an input of whole numbers? Else it is a bias of heads."""
    waiting, seen = [mask], {mask}
    while waiting:
        node = waiting.pop()
        value = tensor_value(node)
        whole = node.op == "placeholder" and value is not None and not value.is_floating_point()
        if whole or is_truth(node):
            return True
        before = [] if calls(node, _PRODUCTS) else read_values(node)
        waiting += [source for source in before if source not in seen]
        seen.update(before)
    return False


def is_truth_in_numbers(value: Node) -> bool:
    """Is a value 0 and 1 where a truth is, by casts and changes of layout alone?"""
    while not is_truth(value):
        before = value.all_input_nodes
        if not calls(value, _KEEPS) or not before:
            return False
        value = before[0]
    return True


def _factors(call: Call) -> list[tuple[Node, bool]]:
    """The masks that an op multiplies weights by."""
    both = tensor_operands(call) if call.name == "aten.mul" else []
    return [(node, False) for _, node in both if is_truth(node)]


def _applied(call: Call) -> tuple[list[tuple[Node, bool]], list[Node]]:
    """The masks that an op applies to logits, and what could be the logits before it."""
    if is_truth(call.node):
        return [], []  # the logits are no truth, so it is what one of their masks is made of
    if call.name == "aten.add":
        both = [node for _, node in tensor_operands(call)]
        return [(node, False) for node in both], both
    if call.name == "aten.baddbmm":
        return [(call["self"], False)], []
    if call.name == "aten.cat":  # with logits of what is no token: a sink
        return [], call.node.all_input_nodes
    if call.name == "aten.masked_fill":
        return [(call["mask"], True)], [call["self"]]
    if call.name == "aten.where":
        hides = _is_filled(call["self"])
        before = call["other" if hides else "self"]
        return [(call["condition"], hides)], [before] if isinstance(before, Node) else []
    before = call["self"] if call.name in _STEPS else None
    return [], [before] if isinstance(before, Node) else []


def _is_filled(value: object) -> bool:
    """Is a branch of a choice one number everywhere?"""
    if not isinstance(value, Node):
        return True
    one = tensor_value(value)
    # By its text: a symbolic size that is compared is guarded on.
    alone = one is not None and all(str(size) == "1" for size in one.shape)
    return alone or str(value.target).startswith(_FILLS)


def padding_masks(findings: Findings, program: Program, views: bool = False) -> frozenset[Node]:
    """The masks that say which tokens of each image are padding, and what follows from the same.

    No group holds padding beside other tokens, so all of these are the same for its members. With
    ``views`` also those that say it of each view or head, of which groups may hold several kinds.
    """
    found = set()
    for site in findings.sites:
        for core in site.cores:
            keys = row_of(findings.types[core.key][0], site.stream)
            per = per_of(findings.types[core.key][0])
            for node, _, own in all_masks_of(core):
                type_ = mask_type(node, findings.types.get(node, ()), program)
                type_ = None if type_ is None else of_frames(type_, per, findings.frames)
                goal = row_of_images(type_, keys, own) if own and type_ is not None else None
                row = goal is not None and (not views_of(goal) or (views and tells_views(node)))
                if row or (own > 1 and pairs_of(node, core, findings, program) is not None):
                    found.add(node)
    if not found:
        return frozenset()
    rows = rows_of(next(iter(found)).graph, findings.types)
    known = {rows[node] for node in found if node in rows}
    return frozenset(found | {node for node, row in rows.items() if row in known})


def pairs_of(mask: Node, core: Core, findings: Findings, program: Program) -> TensorType | None:
    """A mask's type, of all tokens, if it says of each image which of them sees which; else None.

    It is made of the images and of a truth, and not of the queries or keys, as logits are; and
    these are the same tokens.
    """
    type_ = mask_type(mask, findings.types.get(mask, ()), program)
    asking = next(iter(findings.types.get(core.query, ())), TensorType(()))
    per = per_of(findings.types[core.key][0])
    keys = row_of(findings.types[core.key][0], core.stream)
    type_ = None if type_ is None else of_frames(type_, per, findings.frames)
    if type_ is None or row_of_images(type_, keys) is not None:
        return None
    goal = pairs_of_images(type_, keys)
    own = any(holds(axis, core.stream) for axis in asking.axes)
    if goal is None or not own or row_of(asking, core.stream) != keys:
        return None
    of_images = mask in program.of_images and is_of_truth(mask)
    return goal if of_images and not {core.query, core.key} & set(needed_for(mask)) else None
