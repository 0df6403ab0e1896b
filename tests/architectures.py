"""Vision Transformers of timm, drawn by hypothesis.

An `Architecture` is a frozen description; `build` makes the model and fills every parameter with
random numbers, since a zero-initialised head or a LayerScale of 1e-5 makes any law true for
nothing. Sizes are tiny, and often chosen to coincide: a program that takes some other number for
the token count N (the width, the heads, the batch) is caught here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from tests.drawing import brief, randomise, seeded, widths

BLOCKS = {
    "pre": Block,
    "post": ResPostBlock,
    "scaling": ParallelScalingBlock,
    "things": ParallelThingsBlock,
}
MLPS = {"mlp": Mlp, "glu": GluMlp, "swiglu": SwiGLU}


@dataclass(frozen=True, repr=False)
class Architecture:
    """One timm Vision Transformer, and the batch that it is tried with."""

    depth: int = 2
    heads: int = 2
    head_dim: int = 4
    grid: tuple[int, int] = (3, 3)
    patch: int = 2
    channels: int = 3
    prefix: str = "class"  # "class", "distilled" or "none"
    registers: int = 0
    no_embed_class: bool = False
    positions: str = "learn"
    pre_norm: bool = False
    norm: str = "layernorm"
    layer_scale: bool = False
    qk_norm: bool = False
    scale_attn_norm: bool = False
    scale_mlp_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = None
    pool: str = "token"
    pool_include_prefix: bool = False
    mlp: str = "mlp"
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    proj_bias: bool = True
    block: str = "pre"
    attention: str = "attn"  # "diff" has no reference implementation
    fused: bool = True
    dynamic_img_size: bool = False
    classes: int = 5
    batch: int = 2
    seed: int = 0

    __repr__ = brief

    @property
    def dim(self) -> int:
        """Width of the token embedding."""
        return self.heads * self.head_dim

    @property
    def stream(self) -> int:
        """Number of patch tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def protected(self) -> int:
        """Number of prefix tokens."""
        return {"class": 1, "distilled": 2, "none": 0}[self.prefix] + self.registers

    @property
    def has_oracle(self) -> bool:
        """True where `tests.oracle` knows the model."""
        return self.attention == "attn"

    @property
    def reads_last_layer(self) -> bool:
        """True where a merge in the last layer can be seen in the output.

        A class token has read all it wants by then, and a mean straight behind the merge is the
        same mean.
        """
        averages = ("avg", "avgmax", "max")
        norm_after_pool = self.pool in averages if self.fc_norm is None else self.fc_norm
        bare = norm_after_pool or not self.final_norm
        return self.pool != "token" and not (self.block == "scaling" and bare)

    def image_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def images(self, dtype: torch.dtype = torch.float64, batch: int = 0, seed: int = 0) -> Tensor:
        """Random images ``[batch, channels, height, width]``."""
        generator = torch.Generator().manual_seed(1000 + self.seed + 7919 * seed)
        shape = (batch or self.batch, self.channels, *self.image_size())
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Make the model, in eval mode, every parameter random."""
        return build(self, dtype)


def build(config: Architecture, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model that ``config`` describes, in eval mode, every parameter and buffer random."""
    cls = VisionTransformerDistilled if config.prefix == "distilled" else VisionTransformer
    model = cls(
        img_size=config.image_size(),
        patch_size=config.patch,
        in_chans=config.channels,
        num_classes=config.classes,
        global_pool=config.pool,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        proj_bias=config.proj_bias,
        qk_norm=config.qk_norm,
        scale_attn_norm=config.scale_attn_norm,
        scale_mlp_norm=config.scale_mlp_norm,
        init_values=0.5 if config.layer_scale else None,
        class_token=config.prefix != "none",
        no_embed_class=config.no_embed_class,
        pos_embed=config.positions,
        reg_tokens=config.registers,
        pre_norm=config.pre_norm,
        final_norm=config.final_norm,
        fc_norm=config.fc_norm,
        pool_include_prefix=config.pool_include_prefix,
        dynamic_img_size=config.dynamic_img_size,
        norm_layer=config.norm,
        block_fn=BLOCKS[config.block],
        mlp_layer=MLPS[config.mlp],
        attn_layer=config.attention,
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = config.fused
    randomise(model, config.seed)
    return model.to(dtype).eval()


# --- strategies ----------------------------------------------------------------------------------


def architectures(
    min_depth: int = 1,
    max_depth: int = 3,
    attention: tuple[str, ...] = ("attn",),
    pools: tuple[str, ...] = ("token", "token", "avg", "avg", "", "map", "max", "avgmax", "prr"),
    prefixes: tuple[str, ...] = ("class", "class", "none", "distilled"),
) -> st.SearchStrategy[Architecture]:
    """Any plain dialect of timm's Vision Transformer, small."""
    return seeded(lambda rng: _architecture(rng, min_depth, max_depth, attention, pools, prefixes))


def _architecture(
    rng: random.Random,
    min_depth: int,
    max_depth: int,
    attention: tuple[str, ...],
    pools: tuple[str, ...],
    prefixes: tuple[str, ...],
) -> Architecture:
    def flag(chance: float = 0.5) -> bool:
        return rng.random() < chance

    grid = (rng.randint(2, 5), rng.randint(2, 4))
    prefix, block = rng.choice(prefixes), rng.choice(["pre", "pre", "post", "scaling", "things"])
    free, scaling = prefix != "distilled", block == "scaling"  # timm fixes much in these two
    registers = rng.choice([0, 0, 1, 2, 4]) if free else 0
    allowed = [p for p in pools if p != "token"] if prefix == "none" else list(pools)
    pool = rng.choice(allowed) if free else "token"
    protected = {"class": 1, "distilled": 2, "none": 0}[prefix] + registers
    stream = grid[0] * grid[1]
    heads, head_dim, batch = widths(rng, (stream, stream + protected))
    kind = "attn" if scaling else rng.choice(attention)
    if kind == "diff":
        head_dim = max(8, head_dim + head_dim % 2)
    return Architecture(
        depth=rng.randint(max(min_depth, 2 if pool == "token" or scaling else 1), max_depth),
        heads=heads,
        head_dim=head_dim,
        grid=grid,
        patch=rng.choice([2, 3]),
        channels=rng.choice([1, 3]),
        prefix=prefix,
        registers=registers,
        no_embed_class=free and flag(),
        positions="none" if free and flag(0.25) else "learn",
        pre_norm=flag(0.3),
        norm=rng.choice(["layernorm", "layernorm", "rmsnorm"]),
        layer_scale=flag(),
        qk_norm=flag(),
        scale_attn_norm=not scaling and flag(0.3),
        scale_mlp_norm=not scaling and flag(0.3),
        final_norm=flag(0.8),
        fc_norm=rng.choice([None, None, True, False]) if free else None,
        pool=pool,
        pool_include_prefix=flag(0.3),
        mlp=rng.choice(["mlp", "mlp", "glu", "swiglu"]),
        mlp_ratio=rng.choice([2.0, 4.0]),
        qkv_bias=flag(),
        proj_bias=flag(),
        block=block,
        attention=kind,
        fused=flag(),
        dynamic_img_size=flag(0.2),
        classes=rng.choice([5, 5, 0, stream]),
        batch=batch,
        seed=rng.randrange(100),
    )


@st.composite
def schedules(draw: st.DrawFn, depth: int, stream: int) -> list[int]:
    """Tokens to remove in each layer, at least one in the first: a valid list after clipping."""
    left, removed = stream, []
    for layer in range(depth):
        most = left // 2
        r = draw(st.integers(1 if layer == 0 else 0, most)) if most else 0
        removed.append(r)
        left -= r
    return removed
