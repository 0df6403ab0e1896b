"""Levels of ``torch.func`` that a trace opens, closed again where it fails inside of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch._C import _functorch


@contextlib.contextmanager
def levels_closed() -> Iterator[None]:
    """Close what a graph has opened at the end.

    A part under ``vmap`` is opened by one node of a graph and closed by another: where one between
    them fails, all that runs in the process later would be under it.
    """
    depth = _functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        if _functorch.get_dynamic_layer_stack_depth() > depth:
            _functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
