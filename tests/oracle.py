"""timm's Vision Transformers with token merging, written out slowly, in float64, image by image.

This is the reference that the rewritten programs are held to. It knows timm's
``VisionTransformer`` and ``VisionTransformerDistilled`` and nothing of tome_fx: it reads the
modules' weights and follows the paper (`tests.paper`).

Letters: ``n`` tokens of the current sequence, ``C`` channels, ``H`` heads, ``D`` head width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from tests.paper import Run, Tokens, log_size, macs, mean, merge_layer, softmax_attention

__all__ = ["Trace", "macs", "reference", "trace"]


@dataclass
class Trace:
    """What a reference run yields.

    ``output`` is the batch of logits, ``maps[layer][image][patch]`` the stream slot that holds the
    patch after that layer, and ``margin`` the smallest gap in similarity that decided a choice: a
    margin near rounding error means that another, equally right program may choose differently.
    """

    output: Tensor
    maps: list[list[list[int]]]
    margin: float


def reference(
    model: nn.Module,
    x: Tensor,
    schedule: Sequence[int],
    prop_attn: bool = True,
    sizes: bool = True,
) -> Tensor:
    """Logits of ``model`` with ``schedule[i]`` tokens merged in block ``i``, in float64.

    ``prop_attn=False`` leaves the sizes out of every softmax; ``sizes=False`` ignores them
    everywhere (softmax, merged values, pooling), which is the negative control of the laws.
    """
    return trace(model, x, schedule, prop_attn, sizes).output


@torch.no_grad()
def trace(
    model: nn.Module,
    x: Tensor,
    schedule: Sequence[int],
    prop_attn: bool = True,
    sizes: bool = True,
) -> Trace:
    """As `reference`, with the provenance of every patch and the margin of the choices."""
    model = copy.deepcopy(model).double().eval()
    outputs, runs = [], []
    for image in x.double():
        run = Run(schedule, prop_attn, sizes)
        outputs.append(_forward(model, image, run))
        runs.append(run)
    maps = [[run.maps[layer] for run in runs] for layer in range(len(model.blocks))]
    return Trace(torch.stack(outputs), maps, min(run.margin for run in runs))


# --- timm's blocks -------------------------------------------------------------------------------


def _heads(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of ``[n, H, D]`` tensors -> output ``[n, H * D]`` and metric ``[n, D]``."""
    q, k = module.q_norm(q), module.k_norm(k)
    outputs = [
        softmax_attention(q[:, h], k[:, h], v[:, h], q.shape[-1] ** -0.5, bias)
        for h in range(q.shape[1])
    ]
    return torch.cat(outputs, dim=-1), k.mean(dim=1)


def _attention(module: nn.Module, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """timm's ``Attention`` on one image's tokens ``[n, C]``."""
    qkv = module.qkv(x).reshape(x.shape[0], 3, module.num_heads, module.head_dim)
    out, metric = _heads(module, qkv[:, 0], qkv[:, 1], qkv[:, 2], bias)
    return module.proj(module.norm(out)), metric


def _parallel_scaling(block: nn.Module, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The update of a block whose attention and MLP share one projection."""
    hidden, q, k, v = block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)
    if block.mlp_bias is not None:
        hidden = hidden + block.mlp_bias
    shape = (x.shape[0], block.num_heads, block.head_dim)
    out, metric = _heads(block, q.reshape(shape), k.reshape(shape), v.reshape(shape), bias)
    return block.ls(block.attn_out_proj(out) + block.mlp_out_proj(block.mlp_act(hidden))), metric


def _block(block: nn.Module, tokens: Tokens, layer: int, run: Run) -> Tokens:
    """One block: attention, residual, merge, then the MLP on the tokens that are left."""
    x, bias = tokens.x, log_size(tokens, run)
    if isinstance(block, ParallelScalingBlock):
        update, metric = _parallel_scaling(block, x, bias)
        tokens.x = x + update
        return merge_layer(tokens, [metric], layer, run)
    if isinstance(block, ParallelThingsBlock):
        found = [_attention(a.attn, a.norm(x), bias) for a in block.attns]
        updates = [a.ls(y) for a, (y, _) in zip(block.attns, found, strict=True)]
        tokens.x = x + torch.stack(updates).sum(dim=0)
        tokens = merge_layer(tokens, [metric for _, metric in found], layer, run)
        tokens.x = tokens.x + torch.stack([ffn(tokens.x) for ffn in block.ffns]).sum(dim=0)
        return tokens
    if isinstance(block, ResPostBlock):
        y, metric = _attention(block.attn, x, bias)
        tokens.x = x + block.norm1(y)
        tokens = merge_layer(tokens, [metric], layer, run)
        tokens.x = tokens.x + block.norm2(block.mlp(tokens.x))
        return tokens
    y, metric = _attention(block.attn, block.norm1(x), bias)
    tokens.x = x + block.ls1(y)
    tokens = merge_layer(tokens, [metric], layer, run)
    tokens.x = tokens.x + block.ls2(block.mlp(block.norm2(tokens.x)))
    return tokens


# --- timm's model --------------------------------------------------------------------------------


def _embed(model: VisionTransformer, image: Tensor) -> Tokens:
    """Patches of one image ``[C, height, width]``, prefix tokens and positions."""
    weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
    _, _, high, wide = weight.shape
    patches = []
    for top in range(0, image.shape[1], high):
        for left in range(0, image.shape[2], wide):
            tile = image[:, top : top + high, left : left + wide]
            value = (weight * tile).sum(dim=(1, 2, 3))
            patches.append(value if bias is None else value + bias)
    x = model.patch_embed.norm(torch.stack(patches))
    prefix = [getattr(model, n, None) for n in ("cls_token", "dist_token", "reg_token")]
    rows = [token[0] for token in prefix if token is not None]
    table = None if model.pos_embed is None else model.pos_embed[0]
    if table is not None and model.no_embed_class:
        x = x + table
    x = torch.cat([*rows, x])
    if table is not None and not model.no_embed_class:
        x = x + table
    count = sum(row.shape[0] for row in rows)
    members: list[list[int]] = [[] for _ in range(count)] + [[i] for i in range(len(patches))]
    return Tokens(model.norm_pre(x), [1.0] * x.shape[0], members, count)


def _pool(model: VisionTransformer, tokens: Tokens, run: Run) -> Tensor:
    """The pooled feature, or for ``global_pool=""`` all tokens in their original order."""
    start = 0 if model.pool_include_prefix else tokens.protected
    x = tokens.x[start:]
    if model.attn_pool is not None:
        return _attention_pool(model.attn_pool, x, log_size(tokens, run)[start:], tokens, run)
    if model.global_pool == "token":
        return tokens.x[0]
    if model.global_pool == "":
        owner = {p: i for i, patches in enumerate(tokens.members) for p in patches}
        order = [*range(tokens.protected), *(owner[p] for p in sorted(owner))]
        return tokens.x[order]
    average = mean(x, tokens.size[start:], run)
    if model.global_pool == "avg":
        return average
    peak = x.max(dim=0).values
    return peak if model.global_pool == "max" else 0.5 * (peak + average)


def _attention_pool(pool: nn.Module, x: Tensor, bias: Tensor, tokens: Tokens, run: Run) -> Tensor:
    """timm's ``AttentionPoolLatent`` and ``AttentionPoolPrr``."""
    shape = (x.shape[0], pool.num_heads, pool.head_dim)
    scale = pool.head_dim**-0.5
    if hasattr(pool, "latent"):
        q = pool.q_norm(pool.q(pool.latent[0]).reshape(pool.latent_len, *shape[1:]))
        k, v = pool.kv(x).chunk(2, dim=-1)
        k, v = pool.k_norm(k.reshape(shape)), v.reshape(shape)
    else:
        q = k = v = pool.pre_norm(x).reshape(shape)
    heads = [
        softmax_attention(q[:, h], k[:, h], v[:, h], scale, bias) for h in range(pool.num_heads)
    ]
    out = torch.cat(heads, dim=-1)
    if hasattr(pool, "latent"):
        out = pool.proj(out)
        return (out + pool.mlp(pool.norm(out)))[0]
    out = pool.post_norm(out)
    return out[0] if pool.pool == "token" else mean(out, tokens.size[-len(out) :], run)


def _forward(model: VisionTransformer, image: Tensor, run: Run) -> Tensor:
    tokens = _embed(model, image)
    for layer, block in enumerate(model.blocks):
        tokens = _block(block, tokens, layer, run)
    tokens.x = model.norm(tokens.x)
    if isinstance(model, VisionTransformerDistilled):
        return (model.head(tokens.x[0]) + model.head_dist(tokens.x[1])) / 2
    return model.head(model.fc_norm(_pool(model, tokens, run)))
