"""Operands that cannot be merged as a call needs them: what a row of them is of is not known."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Node

from tome_fx.finding.masks import may_hide
from tome_fx.graph.axes import TensorType, batch_axis, extent, has_stream, is_merged
from tome_fx.graph.frames import frames_of, keeps_frames


def loses_frames(have: TensorType, want: TensorType) -> bool:
    """Is a value to be merged frame by frame that does not stand once in each of them?"""
    return is_merged(want) and have != want and not keeps_frames(want)


def hides_of_all_frames(node: Node, have: TensorType, want: TensorType, uneven: Set[Node]) -> bool:
    """May a value hide tokens of all frames in one row, where each frame has its groups?

    ``uneven``: masks of the model that are known to.
    """
    frames = frames_of(want)
    together = any(has_stream(axis) and any(f in axis for f in frames) for axis in want.axes)
    return together and not have.streams and is_merged(want) and (node in uneven or may_hide(node))


def hides_images(have: TensorType, want: TensorType) -> bool:
    """Is ``have`` to be merged image by image, but its own axis there is another than images?"""
    place = batch_axis(want)
    if batch_axis(have) is not None or place is None or not is_merged(want):
        return False
    own = place - (want.rank - have.rank)
    return own >= 0 and extent(have.axes[own]) not in (1, extent(want.axes[place]))
