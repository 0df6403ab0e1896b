"""FlexAttention as fused attention with a mask, or written out where scores are not masked alone.

    flex_attention(q, k, v, score_mod, mask_mod)
    ->  scaled_dot_product_attention(q, k, v, bias + where(mask, 0, -inf))    where a bias is added
    ->  safe_softmax(where(mask, score_mod(q @ k.mT * scale), -inf)) @ v             else

It is one op with two programs inside, and merging has to know what they do. Both are the op's own
meaning (``torch.nn.attention.flex_attention``): the first up to rounding, the second to the bit of
what it computes where it is not compiled. Blocks that the op would leave out are hidden by the
mask, from which their tables are made.
"""

from __future__ import annotations

import contextlib
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.attention.flex_attention as flex
from torch.fx import Graph, GraphModule, Node

from tome_fx.graph.calls import calls, writes
from tome_fx.graph.casts import held_in
from tome_fx.graph.extents import same_size
from tome_fx.graph.mods import AXES, Mod, UnreadError, Writer

aten = torch.ops.aten
_NAMES = ("query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options",
          "score_mod_other_buffers", "mask_mod_other_buffers")  # fmt: skip
_NESTING = "torch._functorch.predispatch"
# What torch warns of where FlexAttention is traced: that it is slow, and how it looks at tensors.
_WARNINGS = ("flex_attention called without torch.compile", "torch.compile is ignored when called",
             "The .grad attribute of a Tensor that is not a leaf")  # fmt: skip


@contextlib.contextmanager
def flex_allowed() -> Iterator[None]:
    """Within, FlexAttention runs and is traced where weights on a CPU ask for gradients.

    The op has none there, and says so when it is called; what it is written as has.
    """
    with patch.object(flex, "_validate_device", lambda *_: None), warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", re.escape(message))
        yield


def is_flex(node: Node) -> bool:
    """Is it a call of FlexAttention?"""
    op = node.target
    return isinstance(op, torch._ops.HigherOrderOperator) and str(op) == "flex_attention"


def write_flex(module: GraphModule) -> None:
    """Edit the graph in place: each call of FlexAttention that can be read, by other ops."""
    found = [node for node in module.graph.nodes if is_flex(node)]
    for node in found:
        try:
            result = _written(module, node)
        except UnreadError:
            continue
        for user in list(node.users):
            user.replace_all_uses_with(result)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    if found:
        _drop_dead(module.graph)


def _written(module: GraphModule, node: Node) -> Node:
    """What it yields, by nodes in front of it."""
    call: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
    if any(user.target is not operator.getitem or (user.args[1] and user.users)
           for user in node.users):  # fmt: skip
        raise UnreadError  # it also asks for the sums of exponents
    with module.graph.inserting_before(node):
        query, key, value = (call[name] for name in _NAMES[:3])
        writer = Writer(module, node, query, key)
        key, value = (_for_each_image(writer, part) for part in (key, value))
        numbers = [partial(writer.range, axis) for axis in range(AXES)]
        hiding = Mod(
            _program(module, call["block_mask"][-1]), writer,
            [*numbers, *call.get("mask_mod_other_buffers", ())],
        )  # fmt: skip
        mask = hiding.value(hiding.result)
        shown = None if _is_true(mask) else mask
        if shown is None and _leaves_out_blocks(module, call["block_mask"]):
            raise UnreadError
        scoring = Mod(
            _program(module, call["score_mod"]), writer,
            [None, *numbers, *call.get("score_mod_other_buffers", ())],
        )  # fmt: skip
        added, dtype = _added(scoring), query.meta["val"].dtype
        if added is None or (added.terms and dtype != torch.promote_types(dtype, torch.float32)):
            return _in_full(writer, (query, key, value), scoring, shown, call["scale"])
        bias = _bias(writer, scoring, added, shown, dtype)
        shared = not same_size(query.meta["val"].shape[1], key.meta["val"].shape[1])
        keywords = {"enable_gqa": True} if shared else {}
        return writer.attention(query, key, value, bias, scale=call["scale"], **keywords)


def _program(module: GraphModule, held: Node) -> GraphModule:
    inner = module.get_submodule(str(held.target))
    if not isinstance(inner, GraphModule):
        raise UnreadError
    return inner


@dataclass(frozen=True)
class _Added:
    """What a ``score_mod`` adds to the score (or takes off), and where it shows it (or hides)."""

    terms: tuple[tuple[Any, bool], ...]
    shown: tuple[tuple[Any, bool], ...]


def _added(mod: Mod) -> _Added | None:
    """What a program adds to its score, if it does no more."""
    part, terms, shown = mod.part(), list[tuple[Any, bool]](), list[tuple[Any, bool]]()
    here, kinds = mod.result, {mod.score.meta["val"].dtype}
    while here is not mod.score:
        if not isinstance(here, Node) or here.kwargs or here not in part:
            return None
        kinds.add(here.meta["val"].dtype)
        inside = [arg in part if isinstance(arg, Node) else False for arg in here.args]
        if sum(inside) != 1:
            return None
        at = inside.index(True)
        if calls(here, ("aten.add", "aten.sub")) and (at == 0 or calls(here, ("aten.add",))):
            terms.append((here.args[1 - at], calls(here, ("aten.add",))))
        elif calls(here, ("aten.masked_fill",)) and not at and _is_least(mod.value(here.args[2])):
            shown.append((here.args[1], False))
        elif calls(here, ("aten.where",)) and at and _is_least(mod.value(here.args[3 - at])):
            shown.append((here.args[0], at == 1))
        else:
            return None
        here = here.args[at]
    return _Added(tuple(terms), tuple(shown)) if len(kinds) == 1 else None


def _bias(writer: Writer, mod: Mod, added: _Added, shown: Node | None, dtype: torch.dtype) -> Any:
    """The mask of fused attention: None, truths, or numbers of the dtype that queries have."""
    for condition, when in added.shown:
        more = mod.value(condition)
        more = more if when else writer.emit(aten.logical_not.default, more)
        shown = more if shown is None else writer.emit(aten.logical_and.default, shown, more)
    total: Node | None = None
    for term, plus in added.terms:
        value = mod.value(term)
        value = value if isinstance(value, Node) else writer.same_everywhere(value, dtype)
        if value.meta["val"].dtype != dtype:
            value = writer.emit(aten.to.dtype, value, dtype)
        value = value if plus else writer.emit(aten.neg.default, value)
        total = value if total is None else writer.emit(aten.add.Tensor, total, value)
    if total is None or shown is None:
        return shown if total is None else total
    zeros = writer.emit(aten.zeros_like.default, shown, dtype=dtype)
    hidden = writer.emit(aten.logical_not.default, shown)
    least = writer.emit(aten.masked_fill.Scalar, zeros, hidden, -torch.inf)
    return writer.emit(aten.add.Tensor, total, least)


def _in_full(
    writer: Writer, rows: tuple[Node, Node, Node], mod: Mod, shown: Node | None, scale: float
) -> Node:
    """Scores, what is done to them, their softmax, and the product: as the op does it in eager."""
    query, key, value = rows
    dtype = query.meta["val"].dtype
    heads, own = query.meta["val"].shape[1], key.meta["val"].shape[1]
    if heads != own:
        key, value = (
            writer.emit(aten.repeat_interleave.self_int, part, heads // own, 1)
            for part in (key, value)
        )
    working = torch.promote_types(dtype, torch.float32)
    query, key = (
        part if dtype == working else writer.emit(aten.to.dtype, part, working)
        for part in (query, key)
    )
    keys = writer.emit(aten.transpose.int, key, -2, -1)
    scores = writer.product(query, keys)
    scores = mod.of(writer.emit(aten.mul.Tensor, scores, scale))
    if shown is not None:
        scores = writer.emit(aten.where.ScalarOther, shown, scores, -torch.inf)
    weights = writer.emit(aten._safe_softmax.default, scores, -1)
    if weights.meta["val"].dtype != dtype:
        weights = writer.emit(aten.to.dtype, weights, dtype)
    return writer.product(weights, value)


def _leaves_out_blocks(module: GraphModule, mask: Sequence[Any]) -> bool:
    """Are there blocks that constant tables leave out, though the mask hides nothing?

    Compiled, the op takes the tables' word for it, and else the mask's.
    """
    tables = [operator.attrgetter(str(part.target))(module) for part in (mask[2], mask[4])
              if isinstance(part, Node) and part.op == "get_attr"]  # fmt: skip
    if not tables or mask[-2] >= 1 << 30:  # all in one block: there was no mask
        return False
    return bool((sum(tables) * mask[-2] < mask[1]).any())


def _for_each_image(writer: Writer, part: Node) -> Node:
    """Keys or values that all images share, for each of them."""
    size = part.meta["val"].shape[0]
    if same_size(size, writer.sizes[0]) or not same_size(size, 1):
        return part
    return writer.emit(aten.expand.default, part, [writer.size(0), -1, -1, -1])


def _is_true(value: Any) -> bool:
    return value is True or (calls(value, ("aten.full",)) and value.args[1] is True)


def _is_least(value: Any) -> bool:
    """Is it minus infinity, everywhere?"""
    filled = isinstance(value, Node) and calls(value, ("aten.full",))
    return bool((value.args[1] if filled else value) == -torch.inf)


def _drop_dead(graph: Graph) -> None:
    """Erase what nobody reads any more: tables of blocks, and the parts under ``vmap`` for them.

    With it go the checks of dtypes and layouts that export adds, which read them too.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    held: Mapping[Node, frozenset[Node]] = {}
    for node in reversed(list(graph.nodes)):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif not node.users and node.op == "call_function" and writes(node):
            held = held or held_in(graph)
            if _is_lost(node, held, order):
                graph.erase_node(node)
        elif not node.users and _only_yields(node):
            graph.erase_node(node)
    marks = [node for node in graph.nodes if _is_nesting(node)]
    if not any(node.users for node in marks):
        for node in reversed(marks):
            graph.erase_node(node)


def _is_lost(write: Node, held: Mapping[Node, frozenset[Node]], order: Mapping[Node, int]) -> bool:
    """Does nobody read what is written, behind the write and by whatever view, here or outside?"""
    memory = held[write]
    if any(node.op != "call_function" for node in memory):
        return False
    beside = [node for node in held if held[node] & memory]
    return not any(order[user] > order[write] for node in beside for user in node.users)


def _only_yields(node: Node) -> bool:
    """Does a node do no more than yield a value?"""
    if node.op == "get_attr":
        return True
    opens = _is_nesting(node) and not node.all_input_nodes
    return node.op == "call_function" and not opens and not node.is_impure()


def _is_nesting(node: Node) -> bool:
    return getattr(node.target, "__module__", "") == _NESTING
