"""The blocks of clips on images: what windows hold are the frames, and so is their result."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.framed import Blocks, C, all_in_one_row, in_the_batch


def tiles(clip: Tensor) -> Tensor:
    """Images ``[B, 3, 2*H, 2*W]`` of clips of four frames, each a quarter."""
    b, _, c, h, w = clip.shape
    return clip.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(b, c, 2 * h, 2 * w)


def interleaved(clip: Tensor) -> Tensor:
    """Images of clips of four frames: a patch of each in every square of two by two patches."""
    b, _, c, h, w = clip.shape
    x = clip.reshape(b, 2, 2, c, h // 4, 4, w // 4, 4).permute(0, 3, 4, 1, 5, 6, 2, 7)
    return x.reshape(b, c, 2 * h, 2 * w)


def in_pairs(clip: Tensor) -> Tensor:
    return clip.repeat_interleave(2, 1).transpose(1, 2)


def _windows(m: Blocks, image: Tensor) -> Tensor:
    """``[B, 2, 2, 16, C]``."""
    x = m.stem(image).unflatten(2, (2, -1)).unflatten(4, (2, -1))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)  # type: ignore[no-any-return]


def _with_class(m: Blocks, x: Tensor) -> Tensor:
    """``[..., 16, C]`` with a class token in front."""
    return torch.cat([m.cls.expand(*x.shape[:-2], 1, -1), x], -2) + m.place


def _blocks(m: Blocks, x: Tensor) -> Tensor:
    for i in range(3):
        x = m.block(i, x)
    return x


def in_rows(m: Blocks, image: Tensor) -> Tensor:
    x = _blocks(m, _with_class(m, _windows(m, image).flatten(0, 2)))
    return x.unflatten(0, (-1, 4))


def on_axes(m: Blocks, image: Tensor) -> Tensor:
    return _blocks(m, _with_class(m, _windows(m, image))).flatten(1, 2)


def on_one_axis(m: Blocks, image: Tensor) -> Tensor:
    return _blocks(m, _with_class(m, _windows(m, image).flatten(1, 2)))


def windows_first(m: Blocks, image: Tensor) -> Tensor:
    x = _windows(m, image).permute(1, 2, 0, 3, 4).flatten(0, 2)
    return _blocks(m, _with_class(m, x)).unflatten(0, (4, -1)).transpose(0, 1)


def at_offsets(m: Blocks, image: Tensor) -> Tensor:
    """Patches attend to those that stand at the same place of their square, as in MobileViT."""
    x = m.stem(image).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
    x = x.permute(0, 3, 5, 2, 4, 1).reshape(-1, 16, x.shape[1])
    return _blocks(m, _with_class(m, x)).unflatten(0, (-1, 4))


def frames_of_a_convolution(m: Blocks, clip: Tensor) -> Tensor:
    """``[B, 3, 2*F, H, W]`` by a convolution over time too, that looks at each second frame."""
    weight = torch.stack([m.stem.weight, torch.zeros_like(m.stem.weight)], 2)
    x = F.conv3d(clip, weight, m.stem.bias, (2, 4, 4))
    x = _blocks(m, _with_class(m, x.transpose(1, 2).flatten(3).mT.flatten(0, 1)))
    return x.unflatten(0, (-1, 4))


def channels_first(m: Blocks, image: Tensor) -> Tensor:
    """The residual is ``[B, C, 4, 17]``."""
    x = _with_class(m, _windows(m, image).flatten(1, 2)).permute(0, 3, 1, 2)
    for i in range(3):
        y = x.permute(0, 2, 3, 1)
        x = x + m.attended(i, y).permute(0, 3, 1, 2)
        x = x + m.mlps[i](x.permute(0, 2, 3, 1)).tanh().permute(0, 3, 1, 2)
    return x.permute(0, 2, 3, 1)


def repeated_classes(m: Blocks, image: Tensor) -> Tensor:
    """Class tokens repeated in another order than windows, behind positions (RF-DETR)."""
    x = _windows(m, image)
    b = image.shape[0]
    whole = torch.cat([m.cls.expand(b, -1, -1), x.flatten(1, 3)], 1)
    whole = whole + torch.cat([m.place[:, :1], m.place[:, 1:].repeat(1, 4, 1)], 1)
    own, x = whole[:, :1].repeat(4, 1, 1), whole[:, 1:].reshape(b * 4, 16, -1)
    return _blocks(m, torch.cat([own, x], 1)).unflatten(0, (-1, 4))


def joint(m: Blocks, image: Tensor) -> Tensor:
    """Attention over the tokens of all windows in the second block."""
    x = m.block(0, _with_class(m, _windows(m, image).flatten(0, 2)))
    x = m.block(1, x.reshape(image.shape[0], 4 * 17, -1)).reshape(x.shape)
    return m.block(2, x).unflatten(0, (-1, 4))


# The model of windows, that of frames with the same result, and images of clips.
WINDOWED = {
    how.__name__: (how, like, made_of)
    for how, like, made_of in (
        (in_rows, in_the_batch, tiles),
        (on_axes, in_the_batch, tiles),
        (on_one_axis, in_the_batch, tiles),
        (windows_first, in_the_batch, tiles),
        (at_offsets, in_the_batch, interleaved),
        (frames_of_a_convolution, in_the_batch, in_pairs),
        (channels_first, in_the_batch, tiles),
        (repeated_classes, in_the_batch, tiles),
        (joint, all_in_one_row, tiles),
    )
}


def _back(x: Tensor) -> Tensor:
    """Windows ``[B*4, 1 + N, C]`` as an image ``[B, C, 8, 8]``, without class tokens."""
    x = x[:, 1:].unflatten(1, (4, 4)).unflatten(0, (-1, 2, 2))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def in_levels(m: Blocks, image: Tensor) -> Tensor:
    """A convolution over all windows, then windows of their own (NesT)."""
    x = m.block(1, m.block(0, _with_class(m, _windows(m, image).flatten(0, 2))))
    weight = m.qkv[0].weight[:C, :, None, None].expand(-1, -1, 3, 3)
    x = F.conv2d(_back(x), weight, padding=1).unflatten(2, (2, -1)).unflatten(4, (2, -1))
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, C)
    return m.block(2, _with_class(m, x)).unflatten(0, (-1, 4))


def with_tables(m: Blocks, image: Tensor) -> Tensor:
    """A row for each window, added behind merges too, and a bias of logits."""
    x = _with_class(m, _windows(m, image).flatten(1, 2))
    rows = torch.cat([m.both, m.frame.expand(-1, -1, 17, -1)[:, :1]], 1)
    for i in range(3):
        x = m.block(i, x + rows + m.place, m.bias)
    return x


def means_of_windows(m: Blocks, image: Tensor) -> Tensor:
    """Means attend to each other behind the blocks of each window."""
    x = m.block(1, m.block(0, _with_class(m, _windows(m, image).flatten(0, 2))))
    return m.block(2, x.mean(1).unflatten(0, (-1, 4)))


def classes_of_frames(m: Blocks, clip: Tensor) -> Tensor:
    """Class tokens of a convolution's frames attend to each other (a factorised ViViT)."""
    return m.block(2, frames_of_a_convolution(m, clip)[:, :, 0])


def joint_in_rows(m: Blocks, image: Tensor) -> Tensor:
    """Attention over the tokens of the windows of a row, in the second block."""
    x = m.block(0, _with_class(m, _windows(m, image)))  # [B, 2, 2, 17, C]
    y = m.block(1, x.flatten(2, 3)).unflatten(2, (2, 17))
    return m.block(2, y).flatten(2, 3).var(2)


def products_between(m: Blocks, image: Tensor) -> Tensor:
    """What tokens at the same places of two windows have in common."""
    x = _blocks(m, _with_class(m, _windows(m, image).flatten(1, 2)))
    return torch.einsum("bwnc,bvnc->bwv", x, x)


def products_in_the_batch(m: Blocks, image: Tensor) -> Tensor:
    x = _blocks(m, _with_class(m, _windows(m, image).flatten(1, 2)))
    return x.mT[:, :, None] @ x[:, None]


def shifted(m: Blocks, image: Tensor) -> Tensor:
    """The windows of the second block are others."""
    x = m.block(0, _with_class(m, _windows(m, image).flatten(0, 2)))
    y = _back(x).roll((2, 2), (2, 3)).unflatten(2, (2, -1)).unflatten(4, (2, -1))
    y = y.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, C)
    return m.block(2, m.block(1, _with_class(m, y))).unflatten(0, (-1, 4))


def place_by_place(m: Blocks, image: Tensor) -> Tensor:
    """The same places of all windows attend to each other, so that none merges by itself."""
    x = m.block(0, _with_class(m, _windows(m, image).flatten(0, 2))).unflatten(0, (-1, 4))
    y = m.block(1, x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, 17)).transpose(1, 2)
    return m.block(2, y.flatten(0, 1)).unflatten(0, (-1, 4))


class Masked(Blocks):
    """Windows, or frames, with a truth for each patch: those that are not seen are padding."""

    def __init__(self, windows: bool, fused: bool) -> None:
        super().__init__(in_rows, fused)
        self.windows = windows

    def forward(self, images: Tensor, real: Tensor) -> Tensor:  # type: ignore[override]
        if self.windows:  # [B, 3, 32, 32], [B, 8, 8]
            x = _with_class(self, _windows(self, images).flatten(0, 2))
            seen = real.unflatten(1, (2, 4)).unflatten(3, (2, 4)).transpose(2, 3).reshape(-1, 16)
        else:  # [B, F, 3, 16, 16], [B, F, 4, 4]
            x, seen = self.tokens(images.flatten(0, 1)), real.flatten(0, 1).flatten(1)
        seen = F.pad(seen, (1, 0), value=True)[:, None, None]
        mask = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, -torch.inf)
        for i in range(3):
            x = self.block(i, x, mask)
        return x[:, 0].unflatten(0, (-1, 4))
