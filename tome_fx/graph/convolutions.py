"""What a convolution sees of the places beside it."""

from __future__ import annotations

from tome_fx.graph.calls import Call

CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")


def sees_one_place(call: Call) -> bool:
    """Does a convolution make each place of itself alone, as a linear on its channels would?"""
    kernel, strides, padding = call["weight"].meta["val"].shape[2:], call["stride"], call["padding"]
    still = isinstance(padding, str) or not any(padding)
    return all(size == 1 for size in (*kernel, *strides)) and still and not call.get("transposed")
