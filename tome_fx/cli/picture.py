"""The paper's picture: token groups filled with their mean colour, borders drawn between them.

Pure functions on arrays. A tile is uint8 [H, W, 3]; `groups` is an integer array [rows, columns],
one group for each patch; H and W are whole multiples of rows and columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Groups = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LIGHT, DARK = (255, 255, 255), (70, 70, 70)
BRIGHT = 200.0  # mean luminance from which white lines can no longer be seen


def upscale(groups: Groups, height: int, width: int) -> Groups:
    """Return the group of each pixel, int64 [height, width].

    Raises ValueError where the patches do not divide the picture.
    """
    rows, columns = groups.shape
    if height % rows or width % columns:
        raise ValueError(f"{rows} x {columns} patches do not divide {height} x {width} pixels")
    return np.repeat(np.repeat(groups, height // rows, axis=0), width // columns, axis=1)


def fill_groups(tile: Pixels, groups: Groups) -> Pixels:
    """Return the tile with every group in the mean colour of all its pixels."""
    slots = upscale(groups, *tile.shape[:2])
    _, flat = np.unique(slots, return_inverse=True)
    flat = flat.reshape(-1)
    counts = np.bincount(flat)
    sums = [np.bincount(flat, weights=tile[..., channel].reshape(-1)) for channel in range(3)]
    means = np.stack(sums, axis=-1) / counts[:, None]
    return np.round(means[flat]).astype(np.uint8).reshape(tile.shape)


def borders(groups: Groups, height: int, width: int, line: int) -> Mask:
    """Return where a line of `line` pixels runs between two groups, bool [height, width].

    The line is centred on the edge, so that a group that is a single patch keeps its place in
    the grid; nothing is drawn along the rim of the picture.
    """
    slots = upscale(groups, height, width)
    mask = np.zeros(slots.shape, dtype=bool)
    across = slots[:, 1:] != slots[:, :-1]
    down = slots[1:, :] != slots[:-1, :]
    before, after = line // 2, line - line // 2
    for offset in range(-before, after):
        _or_shifted(mask, across, 1 + offset, axis=1)
        _or_shifted(mask, down, 1 + offset, axis=0)
    return _with_corners(mask, across, down, before, after)


def _or_shifted(mask: Mask, edges: Mask, shift: int, axis: int) -> None:
    """Set mask[i + shift] wherever edges[i], along one axis, inside the picture."""
    size, count = mask.shape[axis], edges.shape[axis]
    start, stop = max(0, -shift), min(count, size - shift)
    if start >= stop:
        return
    target = [slice(None), slice(None)]
    source = [slice(None), slice(None)]
    target[axis], source[axis] = slice(start + shift, stop + shift), slice(start, stop)
    mask[tuple(target)] |= edges[tuple(source)]


def _with_corners(mask: Mask, across: Mask, down: Mask, before: int, after: int) -> Mask:
    """Close the notch that two lines leave where they meet at a corner from outside."""
    corner = np.zeros((across.shape[0] - 1, down.shape[1] - 1), dtype=bool)
    vertical = across[:-1] | across[1:]
    horizontal = down[:, :-1] | down[:, 1:]
    corner |= vertical & horizontal
    for row, column in np.argwhere(corner):
        rows = slice(max(0, row + 1 - before), row + 1 + after)
        columns = slice(max(0, column + 1 - before), column + 1 + after)
        mask[rows, columns] = True
    return mask


def draw_lines(tile: Pixels, mask: Mask, opacity: float = 0.9) -> Pixels:
    """Return the tile with the mask painted over it: white, or dark on a bright picture."""
    luminance = float((tile @ np.array([0.299, 0.587, 0.114])).mean())
    paint = np.array(LIGHT if luminance <= BRIGHT else DARK, dtype=np.float64)
    mixed = tile + (paint - tile) * opacity
    return np.where(mask[..., None], np.round(mixed), tile).astype(np.uint8)


def merged(tile: Pixels, groups: Groups, line: int = 2) -> Pixels:
    """Return the picture of one image at one layer: mean colours, and lines between groups."""
    filled = fill_groups(tile, groups)
    if line < 1:
        return filled
    height, width = tile.shape[:2]
    return draw_lines(filled, borders(groups, height, width, line))
