"""The fast path of torch's own encoder, written out again.

``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` call one op each where no gradient is
asked for. ``transform`` switches that off while it captures; Dynamo has captured already, so here
the ops are replaced by what they compute, as torch itself writes it where they are off.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from tome_fx.compiling.inputs import Given, held_value
from tome_fx.errors import CaptureError

# What kind of mask an op was given: of the keys of each image, or of pairs of tokens.
_PADDING = 1


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """``aten::_transformer_encoder_layer_fwd`` of ``src`` ``[B, N, C]``, with its own arguments."""
    weights = qkv_weight, qkv_bias, proj_weight, proj_bias

    def attended(x: Tensor) -> Tensor:
        return attention(
            x, x, x, embed_dim, num_heads, *weights, mask, need_weights=False, mask_type=mask_type
        )[0]

    def fed(x: Tensor) -> Tensor:
        x = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(x) if use_gelu else F.relu(x), ffn_weight_2, ffn_bias_2)

    def first(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        src = src + attended(first(src))
        return src + fed(second(src))
    src = first(src + attended(src))
    return second(src + fed(src))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``aten::_native_multi_head_attention`` of ``query`` ``[B, N, C]``, with its own arguments.

    The op hides a key where the mask is not zero, whatever its dtype: ``[N, N]`` (``mask_type`` 0),
    ``[B, N]`` (1) or ``[B, H, N, N]`` (2).
    """
    if query is key is value:
        query = key = value = query.transpose(1, 0)
    else:
        query, key, value = (x.transpose(1, 0) for x in (query, key, value))
    hidden = None if mask is None else mask.to(torch.bool)
    if hidden is not None and mask_type == 2:
        hidden = hidden.flatten(0, 1)
    output, weights = F.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim,
        num_head,
        qkv_weight,
        qkv_bias,
        None,
        None,
        False,
        0.0,
        proj_weight,
        proj_bias,
        training=False,
        key_padding_mask=hidden if mask_type == _PADDING else None,
        need_weights=need_weights,
        attn_mask=None if mask_type == _PADDING else hidden,
        average_attn_weights=average_attn_weights,
    )
    return output.transpose(1, 0), weights


_WRITTEN: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"_transformer_encoder_layer_fwd": encoder_layer, "_native_multi_head_attention": attention}
)


class Writer(Interpreter):
    """Runs a graph with the ops of the fast path written out, and ``x.data`` as ``x.detach()``.

    Of a tensor without values that attribute is no op, but a constant without values.
    """

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what an op computes in its place, or the function itself."""
        name = _name(target)
        instead = Tensor.detach if name == "_get_data_attr" else _WRITTEN.get(name, target)
        return super().call_function(instead, args, kwargs)


def check_masks(module: GraphModule, inputs: Given) -> None:
    """Refuse what the ops do not say: whether a mask of pairs of tokens is a causal one.

    Raises:
        CaptureError: an op of the fast path has such a mask, or one whose values are not known.
    """
    for node in module.graph.nodes:
        written = _WRITTEN.get(_name(node.target)) if node.op == "call_function" else None
        if written is None:
            continue
        given = inspect.signature(written).bind(*node.args, **node.kwargs).arguments
        if given.get("mask_type") in (0, 2) and _may_be_causal(module, given["mask"], inputs):
            raise CaptureError(
                "The fast path of nn.TransformerEncoder does not tell whether its mask is causal. "
                "Switch it off with torch.backends.mha.set_fastpath_enabled(False), or use "
                "tome_fx.transform."
            )


def _may_be_causal(module: GraphModule, mask: Node, inputs: Given) -> bool:
    value = held_value(module, mask, inputs)
    if value is None:
        return True
    hidden = value.to(torch.bool)
    later = torch.ones(hidden.shape[-2:], dtype=torch.bool, device=hidden.device).triu(1)
    return bool((hidden == later).all())


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", "")).partition(".")[0]
