"""Vision Transformers of timm, drawn by hypothesis.

An `Architecture` is a frozen description; `build` makes the model and fills every parameter with
random numbers, since a zero-initialised head or a LayerScale of 1e-5 makes any law true for
nothing. Sizes are tiny, and often chosen to coincide: a program that takes some other number for
the token count N (the width, the heads, the batch) is caught here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

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

BLOCKS = {
    "pre": Block,
    "post": ResPostBlock,
    "scaling": ParallelScalingBlock,
    "things": ParallelThingsBlock,
}
MLPS = {"mlp": Mlp, "glu": GluMlp, "swiglu": SwiGLU}


@dataclass(frozen=True)
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


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fill every floating parameter and buffer: gains near 1, the rest of a healthy size.

    The weights are a little larger than at initialisation, so that attention is far from uniform.
    Variances (``running_var``) stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            continue
        noise = draw(value.shape)
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("weight", "gamma") and value.ndim == 1:
            noise = 1.0 + 0.3 * noise
        elif leaf == "running_var":
            noise = 0.5 + noise.abs()
        elif leaf.endswith("weight"):
            noise = 1.3 * noise / math.sqrt(max(1, value[0].numel()))
        else:
            noise = 0.4 * noise
        value.copy_(noise.to(value.dtype))


# --- strategies ----------------------------------------------------------------------------------


@st.composite
def widths(draw: st.DrawFn, tokens: tuple[int, ...]) -> tuple[int, int, int]:
    """``(heads, head_dim, batch)``, often with one of ``tokens`` equal to something else.

    Heads are at least four wide: keys of fewer dimensions make unequal tokens look the same.
    """
    n = draw(st.sampled_from(tokens))
    choices: list[tuple[int, int, int]] = []
    choices += [(h, n // h, 2) for h in (1, 2, 3, 4) if n % h == 0 and n // h >= 4]  # N == C
    choices += [(n, 4, 2)] if n <= 12 else []  # N == heads
    choices += [(h, n, 2) for h in (1, 2, 3) if 4 <= n <= 16]  # N == head_dim
    choices += [(2, 4, n)] if 2 <= n <= 10 else []  # N == batch
    choices += [(n // 3, 5, 2)] if n % 3 == 0 and n <= 15 else []  # N == 3 * heads
    plain = st.tuples(st.integers(1, 4), st.sampled_from([4, 5, 6, 8]), st.sampled_from([2, 3]))
    return draw(st.one_of(plain, st.sampled_from(choices)) if choices else plain)


def _prefixes() -> st.SearchStrategy[tuple[str, int]]:
    """Kind of prefix and number of registers."""
    return st.one_of(
        st.just(("class", 0)),
        st.tuples(st.sampled_from(["class", "none"]), st.sampled_from([0, 1, 2, 4])),
        st.just(("distilled", 0)),
    )


@st.composite
def architectures(
    draw: st.DrawFn,
    min_depth: int = 1,
    max_depth: int = 3,
    attention: tuple[str, ...] = ("attn",),
    pools: tuple[str, ...] = ("token", "avg", "", "map", "max", "avgmax", "prr"),
) -> Architecture:
    """Any plain dialect of timm's Vision Transformer, small."""
    flag = st.booleans()
    grid = draw(st.tuples(st.integers(2, 5), st.integers(2, 4)))
    prefix, registers = draw(_prefixes())
    block = draw(st.sampled_from(["pre", "pre", "pre", "post", "scaling", "things"]))
    allowed = [p for p in pools if p != "token"] if prefix == "none" else list(pools)
    pool = "token" if prefix == "distilled" else draw(st.sampled_from(allowed))
    protected = {"class": 1, "distilled": 2, "none": 0}[prefix] + registers
    stream = grid[0] * grid[1]
    heads, head_dim, batch = draw(widths((stream, stream + protected)))
    scaling = block == "scaling"
    kind = "attn" if scaling else draw(st.sampled_from(attention))
    if kind == "diff":
        head_dim = max(8, head_dim + head_dim % 2)
    free = prefix != "distilled"  # timm's distilled class fixes these
    return Architecture(
        depth=draw(st.integers(max(min_depth, 2 if pool == "token" or scaling else 1), max_depth)),
        heads=heads,
        head_dim=head_dim,
        grid=grid,
        patch=draw(st.sampled_from([2, 3])),
        channels=draw(st.sampled_from([1, 3])),
        prefix=prefix,
        registers=registers,
        no_embed_class=free and draw(flag),
        positions=draw(st.sampled_from(["learn", "learn", "none"])) if free else "learn",
        pre_norm=draw(flag),
        norm=draw(st.sampled_from(["layernorm", "layernorm", "rmsnorm"])),
        layer_scale=draw(flag),
        qk_norm=draw(flag),
        scale_attn_norm=not scaling and draw(flag),
        scale_mlp_norm=not scaling and draw(flag),
        final_norm=draw(st.sampled_from([True, True, False])),
        fc_norm=draw(st.sampled_from([None, None, True, False])) if free else None,
        pool=pool,
        pool_include_prefix=draw(flag),
        mlp=draw(st.sampled_from(["mlp", "mlp", "glu", "swiglu"])),
        mlp_ratio=draw(st.sampled_from([2.0, 4.0])),
        qkv_bias=draw(flag),
        proj_bias=draw(flag),
        block=block,
        attention=kind,
        fused=draw(flag),
        dynamic_img_size=draw(st.sampled_from([False, False, False, True])),
        classes=draw(st.sampled_from([5, 5, 0, stream])),
        batch=batch,
        seed=draw(st.integers(0, 99)),
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
