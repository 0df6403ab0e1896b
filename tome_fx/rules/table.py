"""The table of rules: op name to rule. What is not here, and not pointwise, is unmerged."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from tome_fx.graph.calls import UNTAGGED, Call
from tome_fx.graph.packed import PACKED
from tome_fx.rules import (
    along,
    attention,
    cells,
    contract,
    hiding,
    layout,
    local,
    pieces,
    placing,
    pools,
    shapes,
    tokens,
    written,
)
from tome_fx.rules.base import Rule
from tome_fx.rules.views import parting


def _family(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **_family(
            layout.reshape,
            "reshape view _unsafe_view flatten unflatten _reshape_alias view_as reshape_as",
        ),
        **_family(layout.permute, "permute transpose t movedim swapaxes swapdims mT numpy_T"),
        **_family(layout.squeeze, "squeeze unsqueeze"),
        **_family(layout.expand, "expand"),
        **_family(layout.repeat, "repeat"),
        **_family(layout.repeat_interleave, "repeat_interleave"),
        **_family(layout.cat, "cat concat concatenate"),
        **_family(layout.stack, "stack"),
        **_family(pieces.slice_, "slice narrow"),
        **_family(pieces.select, "select"),
        **_family(written.written, "select_scatter slice_scatter"),
        **_family(pieces.split, "split split_with_sizes chunk tensor_split"),
        **_family(pieces.unbind, "unbind"),
        **_family(
            local.pointwise,
            "dropout native_dropout feature_dropout contiguous clone alias detach "
            "bernoulli lift_fresh_copy expand_as copy alpha_dropout " + UNTAGGED,
        ),
        **_family(hiding.fill, "masked_fill where"),
        **_family(local.cast, "to type_as _to_copy"),
        **_family(local.cosine, "cosine_similarity"),
        **_family(local.linear, "linear"),
        **dict.fromkeys(PACKED, local.packed_linear),
        **_family(local.embedding, "embedding"),
        **_family(local.trailing_norm, "layer_norm rms_norm"),
        **_family(
            local.channel_norm,
            "batch_norm native_batch_norm _native_batch_norm_legit cudnn_batch_norm "
            "_native_batch_norm_legit_no_training _native_batch_norm_legit_functional",
        ),
        **_family(local.group_norm, "group_norm instance_norm"),
        **_family(local.along_axis, "glu"),
        **_family(contract.matmul, "matmul bmm mm mv"),
        **_family(contract.added_matmul, "baddbmm addmm"),
        **_family(contract.einsum, "einsum"),
        **_family(contract.distances, "cdist"),
        **_family(cells.cell, "gru_cell rnn_tanh_cell rnn_relu_cell"),
        **_family(tokens.softmax, "softmax _softmax _safe_softmax log_softmax"),
        **_family(
            tokens.reduction,
            "sum mean amax amin any all max min var std var_mean std_mean logsumexp norm "
            "linalg_vector_norm linalg_norm prod",
        ),
        **_family(
            pools.pool,
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d "
            "avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d "
            "max_pool2d max_pool3d",
        ),
        **_family(tokens.cumulative, "cumsum cumprod logcumsumexp"),
        **_family(
            along.along,
            "flip roll sort argsort topk argmax argmin median mode kthvalue cummax cummin diff",
        ),
        **_family(along.index_select, "index_select"),
        **_family(along.index, "index"),
        **_family(along.gather, "gather take_along_dim"),
        **_family(placing.scatter, "scatter scatter_add"),
        **_family(placing.index_copy, "index_copy index_add"),
        **_family(placing.index_put, "index_put"),
        **_family(along.prelu, "prelu _prelu_kernel"),
        **_family(
            along.each_alone,
            "bucketize view_as_complex view_as_real one_hot fake_quantize_per_tensor_affine",
        ),
        **_family(attention.attention, "scaled_dot_product_attention"),
        **_family(shapes.like, "zeros_like ones_like empty_like full_like rand_like randn_like"),
        **_family(
            shapes.factory,
            "zeros ones empty full arange rand randn new_zeros new_ones new_empty new_full "
            "scalar_tensor",
        ),
        **_family(shapes.convolution, "conv1d conv2d conv3d convolution"),
        **_family(shapes.pad, "pad constant_pad_nd"),
        **_family(shapes.unfold, "unfold"),
        **_family(
            shapes.grid,
            "conv_transpose1d conv_transpose2d conv_transpose3d upsample_bilinear2d "
            "upsample_bicubic2d upsample_nearest2d pixel_shuffle pixel_unshuffle im2col",
        ),
    }
)


# What takes images or frames apart, where each must have tokens of its own.
_TAKING = ("slice", "narrow", "select", "split", "split_with_sizes", "chunk", "tensor_split",
           "unbind", "index_select", "index", "gather")  # fmt: skip
APART: Mapping[str, Rule] = MappingProxyType(
    {f"aten.{name}": parting(RULES[f"aten.{name}"]) for name in _TAKING}
)


def rule_for(call: Call, extra: Mapping[str, Rule]) -> Rule | None:
    """The rule for a call: the user's, the table's, or the pointwise one by the op's own tag."""
    found = extra.get(call.name) or RULES.get(call.name)
    if found is None and torch.Tag.pointwise in call.op.tags:
        return local.pointwise
    return found
