"""Blocks of attention on the frames of clips, in all the ways that frames are kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tome_fx
from tests.zoo.entry import randomise

C, HEADS = 8, 2
Made = Callable[["Blocks", Tensor], Tensor]


class Blocks(nn.Module):
    """A stem, blocks of attention, and what they are used for."""

    def __init__(self, made: Made, fused: bool, depth: int = 3) -> None:
        super().__init__()
        self.made, self.fused = made, fused
        self.stem, self.cls = nn.Conv2d(3, C, 4, 4), nn.Parameter(torch.randn(1, 1, C))
        self.place = nn.Parameter(torch.randn(1, 17, C))
        self.frame = nn.Parameter(torch.randn(1, 3, 1, C))
        self.both = nn.Parameter(torch.randn(1, 3, 17, C))
        self.bias = nn.Parameter(torch.randn(HEADS, 17, 17))
        self.qkv = nn.ModuleList(nn.Linear(C, 3 * C) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Linear(C, C) for _ in range(depth))

    def tokens(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        return torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place

    def block(self, i: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[..., N, C]``, with any axes in front."""
        x = x + self.attended(i, x, mask)
        return x + self.mlps[i](x).tanh()

    def attended(self, i: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(-2, -3)
            for t in self.qkv[i](self.norms[i](x)).chunk(3, -1)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, mask)
        else:
            logits = q @ k.mT / 2
            y = (logits if mask is None else logits + mask).softmax(-1) @ v
        return y.transpose(-2, -3).flatten(-2)  # type: ignore[no-any-return]

    def forward(self, clip: Tensor) -> Tensor:
        return self.made(self, clip)


def in_the_batch(m: Blocks, clip: Tensor) -> Tensor:
    x = m.tokens(clip.flatten(0, 1))
    for i in range(3):
        x = m.block(i, x)
    return x.unflatten(0, clip.shape[:2])


def on_an_axis(m: Blocks, clip: Tensor) -> Tensor:
    x = m.tokens(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
    for i in range(3):
        x = m.block(i, x)
    return x


def frames_first(m: Blocks, clip: Tensor) -> Tensor:
    x = m.tokens(clip.transpose(0, 1).flatten(0, 1))
    for i in range(3):
        x = m.block(i, x)
    return x.unflatten(0, (clip.shape[1], -1)).transpose(0, 1)


def with_tables(m: Blocks, clip: Tensor) -> Tensor:
    """Positions, frames and both, added behind merges too, and a bias of logits."""
    x = m.tokens(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
    for i in range(3):
        x = m.block(i, x + m.frame + m.both + m.place, m.bias)
    return x


def each_mean(m: Blocks, clip: Tensor) -> Tensor:
    return in_the_batch(m, clip).mean(2)


def mean_of_all(m: Blocks, clip: Tensor) -> Tensor:
    return on_an_axis(m, clip).var((1, 2))


def classes_along_time(m: Blocks, clip: Tensor) -> Tensor:
    """Class tokens of all frames attend to each other behind blocks within each."""
    return m.block(2, in_the_batch(m, clip)[:, :, 0])


def all_in_one_row(m: Blocks, clip: Tensor) -> Tensor:
    """Attention within each frame, over the tokens of all frames, and within each again."""
    x = m.block(0, m.tokens(clip.flatten(0, 1))).unflatten(0, clip.shape[:2])
    x = m.block(1, x.flatten(1, 2)).unflatten(1, x.shape[1:3])
    return m.block(2, x.flatten(0, 1)).unflatten(0, clip.shape[:2])


def side_by_side(m: Blocks, clip: Tensor) -> Tensor:
    """Frames one behind the other on the axis of images, as views of a pair are."""
    x = m.tokens(torch.cat(list(clip.unbind(1))))
    for i in range(3):
        x = m.block(i, x)
    return x.unflatten(0, (clip.shape[1], -1)).transpose(0, 1)


def one_of_them(m: Blocks, clip: Tensor) -> Tensor:
    return on_an_axis(m, clip)[:, 1].relu()


def largest(m: Blocks, clip: Tensor) -> Tensor:
    return on_an_axis(m, clip).amax(1)


def sorted_by_frame(m: Blocks, clip: Tensor) -> Tensor:
    return on_an_axis(m, clip).cumsum(1).flip(1)


ALONE: dict[str, Made] = {
    made.__name__: made
    for made in (in_the_batch, on_an_axis, frames_first, with_tables, each_mean, mean_of_all,
                 classes_along_time, all_in_one_row, side_by_side, one_of_them, largest,
                 sorted_by_frame)
}  # fmt: skip


def made(how: Made, fused: bool = True) -> Blocks:
    model = Blocks(how, fused)
    randomise(model)
    return model.double().eval()


def clip(frames: int = 3) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, dtype=torch.float64)


def of_equal_patches(frames: int = 3) -> Tensor:
    """Clips with pairs of equal patches: other ones in each image and each frame."""
    x = clip(frames).unfold(3, 4, 4).unfold(4, 4, 4).flatten(3, 4)  # [B, F, 3, 16, 4, 4]
    generator = torch.Generator().manual_seed(0)
    for image in range(2):
        for frame in range(frames):
            even, odd = (torch.randperm(8, generator=generator)[:6] * 2 + i for i in range(2))
            x[image, frame, :, odd] = x[image, frame, :, even]
    return x.unflatten(3, (4, 4)).permute(0, 1, 2, 3, 5, 4, 6).reshape(2, frames, 3, 16, 16)


def transformed(model: nn.Module, x: Tensor, r: Any = (4, 0, 2, 0), **options: Any) -> Any:
    r = list(r)[: 4 if getattr(model, "made", None) is classes_along_time else 3]
    return tome_fx.transform(model, r, example_inputs=x, min_ratio=0, **options)
