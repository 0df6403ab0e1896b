"""Vision Transformers in plain PyTorch, as people write them by hand.

One `Plain` describes one spelling: how q, k and v are made, how heads are laid out, which ops
compute the attention, where the norms stand, where positions enter, how the output is read. The
models know no library and follow no naming scheme; `PlainViT.tie` makes their tables equal inside
classes of tokens, for the duplicates law.

Letters: ``B`` batch, ``N`` tokens, ``C`` width, ``H`` heads, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.drawing import brief, randomise
from tests.plain_blocks import Block


@dataclass(frozen=True, repr=False)
class Plain:
    """One hand-written Vision Transformer, and the batch that it is tried with."""

    depth: int = 2
    heads: int = 2
    head_dim: int = 4
    grid: tuple[int, int] = (3, 3)
    stem: str = "conv"  # "conv" or "linear"
    token: str = "front"  # class token: "front", "back" or "none"
    kind: str = "own"  # "own", "mha" (nn.MultiheadAttention) or "encoder" (nn.TransformerEncoder)
    projection: str = "packed"  # "packed", "heads", "chunk", "three", "split"
    kernel: str = "sdpa"  # "sdpa", "matmul", "einsum", "einsum_bnhd", "bmm", "baddbmm",
    # "linear", "covariance"
    positions: str = "add"  # "add", "rope", "bias", "indexed", "none"
    mask: str = "none"  # "none", "float", "bool"
    tables: str = "parameter"  # "parameter", "buffer", "attribute"
    norm: str = "pre"  # "pre", "post", "parallel", "sandwich"
    form: str = (
        "row"  # of the tokens between blocks: "row", "grid" [B, h, w, C] or "image" [B, C, h, w]
    )
    sequence_first: bool = False
    residual_last: bool = False
    weights: bool = False  # ask nn.MultiheadAttention for its weights
    readout: str = "token"
    classes: int = 5
    batch: int = 2
    seed: int = 0

    patch = 2
    channels = 3
    has_oracle = False
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
        """Number of class tokens."""
        return int(self.token != "none")

    @property
    def front(self) -> int:
        """Number of class tokens before the patches."""
        return int(self.token == "front")

    @property
    def reads_last_layer(self) -> bool:
        """True where a merge in the last layer can be seen in the output."""
        return self.readout not in ("token", "patch")

    def images(self, dtype: torch.dtype = torch.float64, batch: int = 0, seed: int = 0) -> Tensor:
        """Random images ``[batch, channels, height, width]``."""
        generator = torch.Generator().manual_seed(1000 + self.seed + 7919 * seed)
        shape = (batch or self.batch, 3, 2 * self.grid[0], 2 * self.grid[1])
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model in eval mode, every parameter random."""
        model = PlainViT(self).to(dtype)
        randomise(model, self.seed)
        return model.redraw(dtype).eval()


class PlainViT(nn.Module):
    """Patches, class token, blocks, readout."""

    def __init__(self, config: Plain) -> None:
        super().__init__()
        self.config = config
        c, n = config.dim, config.stream + config.protected
        self.stem = nn.Conv2d(3, c, 2, 2) if config.stem == "conv" else nn.Linear(12, c)
        self.cls = nn.Parameter(torch.zeros(1, 1, c)) if config.token != "none" else None
        shape = {
            "add": (1, n, c),
            "rope": (2, config.stream, config.head_dim),
            "bias": (config.heads, n, n),
            "indexed": (2 * n, config.heads),
            "none": (0,),
        }[config.positions]
        self._add("table", torch.zeros(shape), config.tables)
        kind = "buffer" if config.tables == "parameter" else config.tables
        index = torch.arange(n * n).reshape(n, n) * 7 % (2 * n)
        self._add("index", index if config.positions == "indexed" else None, kind)
        mask = torch.zeros(n, n, dtype=torch.bool if config.mask == "bool" else None)
        self._add("mask", None if config.mask == "none" else mask, kind)
        self.blocks = self._blocks()
        self.norm = nn.LayerNorm(c)
        width = c * n if config.readout == "flatten" else c
        self.head = (
            nn.Conv2d(c, config.classes, 1)
            if config.readout == "grid"
            else nn.Linear(width, config.classes)
        )

    def _add(self, name: str, value: Tensor | None, kind: str) -> None:
        """Keep a table as a parameter, a buffer, or an attribute that no `state_dict` knows."""
        if kind == "parameter" and value is not None:
            self.register_parameter(name, nn.Parameter(value))
        elif kind == "buffer":
            self.register_buffer(name, value, persistent=False)
        else:
            self.__dict__[name] = value

    def _blocks(self) -> nn.Module:
        config = self.config
        if config.kind != "encoder":
            return nn.ModuleList(Block(config) for _ in range(config.depth))
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.heads,
            2 * config.dim,
            dropout=0.0,
            batch_first=not config.sequence_first,
            norm_first=config.norm == "pre",
        )
        return nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)

    @torch.no_grad()
    def redraw(self, dtype: torch.dtype) -> PlainViT:
        """Random tables, also those that `Module.to` and `parameters` do not reach."""
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        self._set("table", 0.6 * torch.randn(self.table.shape, generator=generator).to(dtype))
        if self.mask is not None:
            noise = torch.randn(self.mask.shape, generator=generator).to(dtype)
            shown = (noise > -0.5).fill_diagonal_(True)
            # What is read sees every token: else a merge may change nothing that can be seen.
            shown[[0, -1, self.config.front + self.config.stream // 2]] = True
            self._set("mask", shown if self.config.mask == "bool" else noise)
        return self

    def _set(self, name: str, value: Tensor) -> None:
        if isinstance(getattr(self, name), nn.Parameter):
            getattr(self, name).copy_(value)
        else:
            setattr(self, name, value)

    @torch.no_grad()
    def tie(self, labels: Sequence[int]) -> None:
        """Make all tables equal inside each class of patches; ``labels[i]`` is patch i's class."""
        config = self.config
        first = [labels.index(label) for label in labels]
        every = [config.front + i for i in first]
        every = [0, *every] if config.front else every
        every = [*every, config.stream] if config.token == "back" else every
        table = self.table
        if config.positions == "add":
            self._set("table", table[:, every])
        elif config.positions == "rope":
            self._set("table", table[:, first])
        elif config.positions == "bias":
            self._set("table", table[:, every][:, :, every])
        if self.index is not None:
            self._set("index", self.index[every][:, every])
        if self.mask is not None:
            self._set("mask", self.mask[every][:, every])

    def bias(self) -> Tensor | None:
        """What attention adds to its scores, or a boolean mask: ``[1, H, N, N]`` or ``[N, N]``."""
        if self.config.positions == "bias":
            return self.table.unsqueeze(0)
        if self.config.positions == "indexed":
            n = self.index.shape[0]
            picked = self.table[self.index.view(-1)].view(n, n, -1)
            return picked.permute(2, 0, 1).contiguous().unsqueeze(0)
        return self.mask

    def embed(self, images: Tensor) -> Tensor:
        """``[B, 3, height, width]`` -> ``[B, N, C]`` with class token and positions."""
        config = self.config
        if config.stem == "conv":
            x = self.stem(images).flatten(2).transpose(1, 2)
        else:
            high, wide = config.grid
            x = images.reshape(-1, 3, high, 2, wide, 2).permute(0, 2, 4, 1, 3, 5)
            x = self.stem(x.reshape(-1, high * wide, 12))
        if self.cls is not None:
            token = self.cls.expand(x.shape[0], -1, -1)
            x = torch.cat([token, x] if config.token == "front" else [x, token], dim=1)
        return x + self.table if config.positions == "add" else x

    def read(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` -> what the model returns."""
        config, patches = self.config, slice(self.config.front, None)
        if config.token == "back":
            patches = slice(None, -1)
        if config.readout == "grid":
            grid = x[:, patches].transpose(1, 2).reshape(x.shape[0], -1, *config.grid)
            return self.head(grid)
        pooled = {
            "token": lambda: x[:, 0] if config.token == "front" else x[:, -1],
            "mean": lambda: x.mean(dim=1),
            "patches": lambda: x[:, patches].mean(1),
            "max": lambda: x.amax(dim=1),
            "sum": lambda: x.sum(1),
            "dense": lambda: x,
            "flatten": lambda: x.flatten(1),
            "patch": lambda: x[:, config.front + config.stream // 2],
        }[config.readout]()
        return self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        config = self.config
        if config.form != "row":
            return self.on_grid(images)
        x = self.embed(images)
        bias = self.bias()
        x = x.transpose(0, 1) if config.sequence_first else x
        if config.kind == "encoder":
            hidden = ~bias if bias is not None and bias.dtype == torch.bool else bias
            x = self.blocks(x, mask=hidden, is_causal=False)  # else it looks at the mask's values
        else:
            rotate = self.table if config.positions == "rope" else None
            for block in self.blocks:
                x = block(x, bias, rotate)
        x = x.transpose(0, 1) if config.sequence_first else x
        return self.read(self.norm(x))

    def on_grid(self, images: Tensor) -> Tensor:
        """The same with the tokens on a grid from block to block."""
        config, is_image = self.config, self.config.form == "image"
        if is_image and config.stem == "conv" and config.positions != "add":
            x = self.stem(images)
        else:
            x = self.embed(images).unflatten(1, config.grid)
            x = x.permute(0, 3, 1, 2) if is_image else x
        rotate = self.table if config.positions == "rope" else None
        for block in self.blocks:
            x = block(x, self.bias(), rotate)
        x = self.norm(x.permute(0, 2, 3, 1) if is_image else x)
        if config.readout == "mean":
            return self.head(x.mean((1, 2)))
        return self.read(x.flatten(1, 2))
