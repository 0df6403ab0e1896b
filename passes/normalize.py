"""Normalize: one spelling for what means the same, so that later passes read less.

    y = native_layer_norm(x)[0]-> y = layer_norm(x): a kernel by name is what chooses kernels
    y = reshape(bmm(..))       -> y = matmul(x, z), where x and z were expanded and folded for it
    assert_async(x)            -> (gone)
    y = dropout(x, p, False)   -> x
    y = to(x, device)          -> x, if it is there: its dtype is not asked for
    y = slice(x, 1, 0, end)    -> x, if that are all places
    y = slice_scatter(x, z, 0) -> y = clone(z), if that are all places
    y[:, :1], y[:, 1:] = x, z  -> y = cat([x, z], 1)
    y, z = x.mT, x.mT          -> y twice: what is cut from both is cut from one row
    y = view(x, [b, n, c])     -> y = reshape(x, [b, n, c])
    y = copy(x, z)             -> y = expand(z, sizes of x), in the dtype of x
    y = expand_as(x, z)        -> y = expand(x, sizes of z): a table stays one
    y = view_as(x, z)          -> y = reshape(x, sizes of z): no matter how z was merged
    y = batch_norm(x, mean)    -> y = batch_norm(x, clone(mean)), where it writes to mean later
    y = as_strided(x, ..)      -> y = reshape(permute(reshape(permute(x)))), or by an index
    y = einsum("bhnd->bnhd",x) -> y = permute(x, [0, 2, 1, 3])
    y = einsum("bnc->bc", x)   -> y = sum(x, [1])
    y = einsum(.., x, w, z)    -> y = einsum(.., einsum(.., x, w), z), the pairs that it takes
    y = sub(x, mask)           -> y = add(x, neg(mask)), where a softmax follows
    y = add(x, m, alpha=a)     -> y = add(x, mul(m, a)), where m is a truth as a number
    y = vstack([x, z])         -> y = cat([x, z]): what has no rule, by its parts, which may have
    y = repeat(x, [w, 1, 1])   -> y = expand(x[:1], ..), where all images have the same
    n = sym_size(x, 0)         -> n = mul(sym_size(images, 0), 9), where it is so many of them
    y = out_dtype(mm, int32, x, z) -> y = _int_mm(x, z), where they are int8
    y = ge(arange(n), 0)       -> y = full([n], True): what is the same everywhere says so
    y = attention(.., ones)    -> y = attention(..): a mask that hides nothing is none
    y = attention(.., bias + ones) -> y = attention(.., bias), where they are truths
    y = attention(...), unread -> (gone)

A ``view`` and ``as_strided`` depend on strides, which merging changes; a ``reshape`` does not.
Valid before, valid after; shapes of the result stay as they are, and so do its bits, but for
attention without its mask of ones, which rounds as the model does where it makes none, and for what
a decomposition wrote. Dropout in training, casts, copies and what draws random numbers stay too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node

from tome_fx.finding.cores import PRODUCTS
from tome_fx.finding.masks import is_of_truth, is_truth_in_numbers
from tome_fx.graph.alike import repeat_alike
from tome_fx.graph.calls import bind, calls
from tome_fx.graph.canvases import join_pieces
from tome_fx.graph.checks import is_check
from tome_fx.graph.composites import write_out
from tome_fx.graph.cones import made_of_inputs
from tome_fx.graph.cuts import VIEWS, frozen, takes_all, writes_all
from tome_fx.graph.einsums import read_einsum
from tome_fx.graph.extents import size_before
from tome_fx.graph.idle import is_idle
from tome_fx.graph.kernels import write_kernels
from tome_fx.graph.literals import Literals
from tome_fx.graph.products import write_products
from tome_fx.graph.softmaxes import leads_to_softmax
from tome_fx.graph.strided import STRIDED, VIEWED, write_strided
from tome_fx.graph.values import needed_for
from tome_fx.graph.widened import WIDENED, write_widened
from tome_fx.rules.base import Rule
from tome_fx.rules.table import rule_for

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_AS = (aten.expand_as.default, aten.view_as.default, aten.reshape_as.default)


def normalize(graph: Graph, rules: Mapping[str, Rule] = MappingProxyType({})) -> Graph:
    """Edit ``graph`` in place and return it.

    Args:
        rules: rules of the user's own, by op; their ops stay whole.
    """
    images = made_of_inputs(graph)
    literals = Literals()
    moved: dict[Any, Node] = {}
    write_kernels(graph)
    write_products(graph)
    join_pieces(graph)
    write_out(graph, lambda call: rule_for(call, rules) is not None)
    for node in list(graph.nodes):
        if is_check(node):
            graph.erase_node(node)
        elif _is_nothing(node) or takes_all(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif writes_all(node):  # a copy, for it may leave the program
            node.target, node.args, node.kwargs = aten.clone.default, (bind(node)["src"],), {}
        elif calls(node, VIEWS) and not node.kwargs:
            first = moved.setdefault((node.target, *map(frozen, node.args)), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)
            else:
                literals.read(node)
        elif node.target is aten.scaled_dot_product_attention.default:
            _attend(node, literals)
        elif node.target in STRIDED:
            write_strided(node, images)
        elif node.target in _REWRITES:
            _REWRITES[node.target](node)
        elif node.target in (aten.sub.Tensor, aten.add.Tensor):
            _add_mask(node, images)
            literals.read(node)
        else:
            literals.read(node)
    graph.eliminate_dead_code(_has_effects)
    return graph


def _attend(node: Node, literals: Literals) -> None:
    """A mask that hides nothing is none, and neither is a truth that is added to a bias.

    transformers makes a mask of ones where it is exported, and nowhere else, and BEiT adds it to
    its bias. To a softmax a number for all of its logits is nothing, but for their rounding.
    """
    mask = bind(node)["attn_mask"]
    if not isinstance(mask, Node):
        return
    shown = _is_nothing_to_a_softmax(mask, literals)
    bias = None if shown else _bias_beside(mask, literals)
    if shown or bias is not None:
        if len(node.args) > 3:
            node.update_arg(3, bias)
        else:
            node.update_kwarg("attn_mask", bias)


def _bias_beside(mask: Node, literals: Literals) -> Node | None:
    """What a truth, or nothing, is added to for all logits."""
    if mask.target is not aten.add.Tensor or bind(mask)["alpha"] != 1:
        return None
    pair = mask.args
    for bias, same in (pair, pair[::-1]):
        if not isinstance(bias, Node) or not isinstance(same, Node):
            continue
        number = literals.of_all(same)
        if (number is True or number == 0) and _is_like(bias.meta["val"], mask.meta["val"]):
            return bias
    return None


def _is_like(bias: torch.Tensor, mask: torch.Tensor) -> bool:
    """Does attention take it in place of the mask, for all queries and keys of an image?"""
    whole = bias.dim() == mask.dim() > 1 and bias.shape[-2:] == mask.shape[-2:]
    return whole and bias.dtype == mask.dtype


def _is_nothing_to_a_softmax(mask: Node, literals: Literals) -> bool:
    same = literals.of_all(mask)
    return same is True if mask.meta["val"].dtype is torch.bool else same == 0


def _read_copy(node: Node) -> None:
    """``copy`` has no derivative: what it gives is its second operand, cast and expanded."""
    call = bind(node)
    target, source = call["self"], call["src"]
    before, after = source.meta["val"], node.meta["val"]
    with node.graph.inserting_before(node):
        if before.dtype != after.dtype:
            source = node.graph.call_function(aten.to.dtype, (source, after.dtype))
            source.meta = {**node.meta, "val": before.to(after.dtype)}
    node.target, node.args, node.kwargs = aten.expand_as.default, (source, target), {}
    _by_sizes(node)


def _add_mask(node: Node, images: Set[Node]) -> None:
    """What hides keys is added to logits: to the last bit the same as subtracted, or by alpha."""
    call = bind(node)
    logits, mask, alpha = call["self"], call["other"], call.get("alpha", 1)
    if not isinstance(logits, Node) or not isinstance(mask, Node) or not leads_to_softmax(node):
        return
    before, minus = mask.meta["val"], call.name == "aten.sub"
    if not before.is_floating_point():
        return
    if alpha != 1:
        # Only of numbers 0 and 1, in the dtype of the sum, is the product one that a sum in one
        # step has too.
        if before.dtype != node.meta["val"].dtype or not is_truth_in_numbers(mask):
            return
        op, by = aten.mul.Tensor, [-alpha if minus else alpha]
    elif minus and (mask not in images or _is_of_truth_alone(mask, images)):
        op, by = aten.neg.default, []
    else:
        return
    with node.graph.inserting_before(node):
        added = node.graph.call_function(op, (mask, *by))
    added.meta = {**node.meta, "val": op(before, *by)}
    node.target, node.args, node.kwargs = aten.add.Tensor, (logits, added), {}


def _is_of_truth_alone(mask: Node, images: Set[Node]) -> bool:
    """Is it made of a truth, and not of logits: their largest, say?"""
    made = (own for own in needed_for(mask) if own in images)
    return is_of_truth(mask) and not any(calls(own, PRODUCTS) for own in made)


def _by_sizes(node: Node) -> None:
    """Such an op reads no value of its second operand, so what that holds is of no matter."""
    sizes = [size_before(size, node) for size in node.meta["val"].shape]
    if None not in sizes:
        expands = node.target is aten.expand_as.default
        node.target = aten.expand.default if expands else aten.reshape.default
        node.args, node.kwargs = (node.args[0], sizes), {}


def _size_of_input(node: Node) -> None:
    """A size that is a number of images is none of the value that it was read of, merged or not."""
    size, source = node.meta.get("val"), node.args[0]
    assert isinstance(source, Node)
    if not isinstance(size, torch.SymInt) or source.op == "placeholder":
        return
    times = int(size.node.expr.as_coeff_Mul()[0])
    images = size_before(size // times, node) if times > 0 else None
    if isinstance(images, Node) and times == 1:
        node.replace_all_uses_with(images)
    elif isinstance(images, Node):
        node.target, node.args = operator.mul, (images, times)


def _keep_statistics(node: Node) -> None:
    """Backward reads the running statistics of a batch norm, which the program writes to before."""
    for place in (3, 4):
        held = node.args[place]
        assert isinstance(held, Node)
        with node.graph.inserting_before(node):
            own = node.graph.call_function(aten.clone.default, (held,))
        own.meta = {**node.meta, "val": held.meta["val"]}
        node.update_arg(place, own)


def _reshape(node: Node) -> None:
    node.target = aten.reshape.default


_REWRITES: Mapping[Any, Callable[[Node], None]] = {
    **dict.fromkeys(VIEWED, _reshape),
    **dict.fromkeys(_AS, _by_sizes),
    aten.copy.default: _read_copy,
    aten.einsum.default: read_einsum,
    aten.repeat.default: repeat_alike,
    aten.sym_size.int: _size_of_input,
    WIDENED: write_widened,
    aten._native_batch_norm_legit_functional.default: _keep_statistics,
}


def _has_effects(node: Node) -> bool:
    """Must a node stay that nobody reads? Attention only where it draws numbers for a dropout.

    A tap before the last layer leaves that layer's attention behind, and all that it is made of.
    """
    if node.target is aten.scaled_dot_product_attention.default:
        return bool(bind(node)["dropout_p"])
    return node.is_impure()


def _is_nothing(node: Node) -> bool:
    if node.target is aten.to.dtype_layout:
        return is_idle(node)  # a move: export writes all that its operand is into it
    if node.target not in _DROPOUTS:
        return False
    call = bind(node)
    return call["train"] is False or call["p"] == 0
