"""Windows that stay apart: rows of tokens whose residual adds are in windows too.

    x = x.view(B, n, k, n, k, C).transpose(2, 3).reshape(B * n * n, k * k, C)
    x = x + attn(x)                  each window attends to itself, and is added to by itself
    x = x + attn(x.view(B, -1, C))   or all attend to each other, and are windows again behind it

Each window is a frame of the image then, with groups of its own: so are the frames that a
convolution makes of a clip, and patches that attend to those of the same offset (MobileViT).
Windows that are cut of a residual value on the grid, as Swin's are, are none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from torch.fx import Graph, Node

from tome_fx.finding.cores import Anchor, is_inside_places, is_tokens, runs
from tome_fx.finding.inner import residual_of
from tome_fx.graph.axes import Axis, Concat, TensorType, extent
from tome_fx.graph.cones import cones_of
from tome_fx.graph.frames import is_beside, is_of, with_images

Types = Mapping[Node, tuple[TensorType, ...]]


def windows_of(graph: Graph, found: Iterable[tuple[Anchor, ...]], plain: Types) -> dict[Axis, Axis]:
    """The tokens of a window, and the images and windows, for each residual value in windows."""
    cones = cones_of(graph)
    windows: dict[Axis, Axis] = {}
    for anchor, *_ in found:
        query, key = plain.get(anchor.query), plain.get(anchor.key)
        if not query or not key or not _may_be_windows(key[0], anchor.key_axis):
            continue
        residual = residual_of(graph, anchor, plain, cones)
        if residual is None:
            continue
        facing = query[0].axes[anchor.query_axis], key[0].axes[anchor.key_axis]
        for run, beside in _rows(plain[residual][0]):
            if all(_holds(axis, run) for axis in facing):
                windows.setdefault(run, beside)
    return windows


def _may_be_windows(key: TensorType, token_axis: int) -> bool:
    """Do places stand beside a row of keys, or rows with tokens of their own beside each other?

    Most attention is asked no more than this: there may be thousands, of images in one row.
    """
    own = key.axes[token_axis]
    rows = len(own) > 1 and any(isinstance(factor, Concat) for factor in own)
    return rows or is_inside_places(key, token_axis)


def _rows(type_: TensorType) -> Iterator[tuple[Axis, Axis]]:
    """Each row of places of a value, with the images and the other places that stand beside it."""
    for place, axis in enumerate(type_.axes):
        others = [own for i, own in enumerate(type_.axes) if i != place]
        leading = [own for own in others if any(map(is_beside, own))]
        beside = tuple(itertools.chain.from_iterable(leading))
        if not all(map(is_beside, beside)) or not any(is_of(f, ("conv",)) for f in beside):
            continue
        if not any(extent(own) > 1 for own in others if own not in leading):
            continue  # nothing is left for channels
        yield from ((run, with_images(beside)) for run in runs(axis) if is_tokens(run))


def _holds(axis: Axis, run: Axis) -> bool:
    """Is ``run`` a stretch of an axis, or of one of its pieces?"""
    if is_stretch(run, axis):
        return True
    parts = (part for f in axis if isinstance(f, Concat) for part in f.parts)
    return any(_holds(part, run) for part in parts)


def is_stretch(run: Axis, axis: Axis) -> bool:
    """Do the factors of ``run`` stand in ``axis``, one behind the other?"""
    width = len(run)
    return any(axis[start : start + width] == run for start in range(len(axis) - width + 1))
