"""Kernels that a program calls by their own names, as the ops that choose among them.

    y = _scaled_dot_product_flash_attention(q, k, v)[0] -> y = scaled_dot_product_attention(q, k, v)
    y = _flash_attn_forward(q, k, v, ..)[0]             -> the same, of heads behind tokens
    y = native_layer_norm(x, [c], w, b, eps)[0]         -> y = layer_norm(x, [c], w, b, eps)
    y = native_group_norm(x, w, b, n, c, hw, g, eps)[0] -> y = group_norm(x, g, w, b, eps)
    y = _fused_rms_norm(x, [c], w, eps)[0]              -> y = rms_norm(x, [c], w, eps)
    y = where(is_hidden(x), 0, softmax(x))              -> y = _safe_softmax(x)

A decomposed program (core ATen) holds them, and so does one whose model calls a library of kernels:
flash-attn, xformers. What a kernel returns beside its result, for a backward or for who puts parts
of a softmax together, nobody may read: where somebody does, it stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeGuard

import torch
from torch.fx import Graph, Node

from tome_fx.graph.calls import Call, bind, calls, packet_name
from tome_fx.graph.extents import same_size

aten = torch.ops.aten


@dataclass(frozen=True)
class Chosen:
    """An op that chooses among kernels, and its arguments.

    Attributes:
        behind: do heads stand behind tokens in what a kernel takes and returns, ``[B, N, H, D]``?
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    behind: bool = False


Reading: TypeAlias = Callable[[Call], Chosen | None]

# What an argument of attention is called by one kernel or another.
_NAMES = {
    "query": ("query", "q"),
    "key": ("key", "k"),
    "value": ("value", "v"),
    "attn_mask": ("attn_mask", "attn_bias", "bias"),
    "dropout_p": ("dropout_p", "p"),
    "is_causal": ("is_causal", "causal"),
    "scale": ("scale", "softmax_scale"),
    "enable_gqa": ("enable_gqa",),
}
# What makes no difference to the result: what else is returned, and how it is computed.
_HOW = {
    "compute_log_sumexp", "return_debug_mask", "return_softmax", "num_splits", "pack_gqa",
    "sm_margin", "max_q", "max_k", "max_seqlen_q", "max_seqlen_k", "is_rotary_interleaved",
    "rotary_interleaved",
}  # fmt: skip
# An argument that is one of these asks for nothing: no cap, no table of blocks. A window of 0 hides
# what comes first or last.
_NOTHING = (None, False, 0, 0.0, -1)
_NO_WINDOW = (None, -1)


def write_kernels(graph: Graph) -> None:
    """Edit ``graph`` in place. Nodes hold fake tensors as ``meta["val"]``."""
    for node in list(graph.nodes):
        if node.target is aten.where.self:
            _write_safe_softmax(node)
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        reading, result = _KERNELS.get(packet_name(node.target)), _only_result(node)
        chosen = None if reading is None or result is None else reading(bind(node))
        if chosen is not None and result is not None:
            _write(result, chosen)


def kernel_name(node: Node) -> str:
    """The name of what a node calls if that is, or sounds like, a kernel of attention."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    name = packet_name(node.target)
    sounds = "attn" in name or "attention" in name or _KERNELS.get(name) in _ATTENTION
    return name if sounds and name != "aten.scaled_dot_product_attention" else ""


def _only_result(node: Node) -> Node | None:
    """What takes the first of several results of ``node``, if nobody reads another."""
    if any(user.target is not operator.getitem for user in node.users):
        return None
    read = [user for user in node.users if user.users]
    return read[0] if len(read) == 1 and read[0].args[1] == 0 else None


def _write(result: Node, chosen: Chosen) -> None:
    """``chosen`` in the place of a kernel's result."""
    graph, args, value = result.graph, chosen.args, result.meta["val"]
    with graph.inserting_before(result):
        if chosen.behind:
            args = (*(_turned(result, operand) for operand in args[:3]), *args[3:])
            value = value.transpose(1, 2)
        made = graph.call_function(chosen.op, args, dict(chosen.kwargs))
        made.meta = {**result.meta, "val": value}
        if chosen.behind:
            made = _turned(result, made)
    result.replace_all_uses_with(made)
    kernel: Any = result.args[0]
    for unread in (*kernel.users, kernel):  # one that may draw numbers would stay by itself
        graph.erase_node(unread)


def _turned(reader: Node, value: Node) -> Node:
    """``[B, N, H, D]`` as ``[B, H, N, D]``, or the other way."""
    turned = reader.graph.call_function(aten.transpose.int, (value, 1, 2))
    turned.meta = {**reader.meta, "val": value.meta["val"].transpose(1, 2)}
    return turned


def _attention(call: Call) -> Chosen | None:
    return _attention_of(call, behind=False)


def _attention_behind(call: Call) -> Chosen | None:
    return _attention_of(call, behind=True)


def _attention_of(call: Call, behind: bool) -> Chosen | None:
    """Attention of each token to all others of its image, or as the other arguments say.

    None where one asks for what ``scaled_dot_product_attention`` has not: windows, a cap of the
    logits, lengths of several images in one row, pages.
    """
    given: dict[str, Any] = {}
    for argument, value in call.arguments.items():
        name = next((name for name, known in _NAMES.items() if argument in known), None)
        if name is not None:
            given[name] = value
        elif argument not in _HOW and not _asks_nothing(argument, value):
            return None
    query, key, value = (given.pop(name) for name in ("query", "key", "value"))
    mask, dropout = given.pop("attn_mask", None), given.pop("dropout_p", 0.0)
    heads = 2 if behind else 1
    sizes = [operand.meta["val"].shape for operand in (query, key, value)]
    if any(len(size) != 4 for size in sizes):
        return None
    if given.get("is_causal") and not same_size(sizes[0][3 - heads], sizes[1][3 - heads]):
        return None  # of keys in another number some align the last, some the first
    args = (query, key, value, *([mask, dropout] if mask is not None or dropout else []))
    kwargs = {"is_causal": True} if given.get("is_causal") else {}
    if given.get("scale") is not None:
        kwargs["scale"] = given["scale"]
    if sizes[0][heads] != sizes[1][heads]:
        kwargs["enable_gqa"] = True
    return Chosen(aten.scaled_dot_product_attention.default, args, kwargs, behind)


def _asks_nothing(argument: str, value: Any) -> bool:
    nothing = _NO_WINDOW if "window" in argument else _NOTHING
    values = value if isinstance(value, (list, tuple)) else [value]
    return not any(isinstance(one, Node) for one in values) and all(
        one in nothing for one in values
    )


_ATTENTION = (_attention, _attention_behind)


def _layer_norm(call: Call) -> Chosen:
    args = tuple(call[name] for name in ("input", "normalized_shape", "weight", "bias", "eps"))
    return Chosen(aten.layer_norm.default, args)


def _group_norm(call: Call) -> Chosen | None:
    given = [call["N"], call["C"]]
    sizes = [size.meta["val"] if isinstance(size, Node) else size for size in given]
    if not all(map(same_size, sizes, call["input"].meta["val"].shape)):
        return None  # other groups of channels than those of the second axis
    args = tuple(call[name] for name in ("input", "group", "weight", "bias", "eps"))
    return Chosen(aten.group_norm.default, args)


def _rms_norm(call: Call) -> Chosen:
    args = tuple(call[name] for name in ("input", "normalized_shape", "weight", "eps"))
    return Chosen(aten.rms_norm.default, args)


_KERNELS: Mapping[str, Reading] = {
    **{
        f"aten._scaled_dot_product_{name}": _attention
        for name in (
            "flash_attention_for_cpu", "flash_attention", "efficient_attention",
            "cudnn_attention", "fused_attention_overrideable", "attention_math_for_mps",
        )
    },
    **dict.fromkeys(
        (
            "aten._flash_attention_forward", "aten._efficient_attention_forward",
            "flash_attn._flash_attn_forward", "flash_attn_3._flash_attn_forward",
            "xformers_flash.flash_fwd", "xformers_flash3.flash_fwd",
        ),
        _attention_behind,
    ),
    "aten.native_layer_norm": _layer_norm,
    "aten.native_group_norm": _group_norm,
    "aten._fused_rms_norm": _rms_norm,
}  # fmt: skip


# What says that a row hides all its keys, from the truth on to the logits.
_HIDES_ALL = (
    aten.logical_not.default, aten.any.dim, aten.logical_not.default, aten.eq.Scalar,
)  # fmt: skip


def _write_safe_softmax(node: Node) -> None:
    """A softmax whose rows without any key are zeros, as torch writes it out."""
    hidden, zeros, softmax = node.args
    if not _is_plain_softmax(softmax) or not _is_zeros_like(zeros, softmax):
        return
    logits, dim = softmax.args[:2]
    read: list[Node] = []
    for op in _HIDES_ALL:
        if not isinstance(hidden, Node) or hidden.target is not op:
            return
        read.append(hidden)
        hidden = hidden.args[0]
    if hidden is not logits or node.meta["val"].shape != softmax.meta["val"].shape:
        return
    some, compared = bind(read[1]), bind(read[3])
    if (some["dim"], some["keepdim"], compared["other"]) == (dim, True, -torch.inf):
        node.target, node.args = aten._safe_softmax.default, (logits, dim)


def _is_plain_softmax(node: Any) -> TypeGuard[Node]:
    """Is it a softmax in the dtype of its logits?"""
    if not isinstance(node, Node) or not calls(node, ("aten._softmax", "aten.softmax")):
        return False
    logits = node.args[0]
    return isinstance(logits, Node) and logits.meta["val"].dtype == node.meta["val"].dtype


def _is_zeros_like(node: Any, other: Node) -> bool:
    if not isinstance(node, Node) or not calls(node, ("aten.full_like", "aten.full")):
        return False
    value, like = node.meta["val"], other.meta["val"]
    return bool(node.args[1] == 0) and value.dtype == like.dtype and value.shape == like.shape
