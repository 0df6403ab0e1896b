"""Inputs with one number of rows: said to the tracer, where a model takes it as given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example


@contextmanager
def said_to_be_alike(model: nn.Module, example: Example) -> Iterator[None]:
    """Within, a call of ``model`` checks first that all its inputs have as many rows as the first.

    ``cat([first, second]).chunk(2)`` gives images of both, or halves of unlike rows: a tracer that
    has a size for each input must think of the latter.
    """
    batched = [example.has_rows(leaf) for leaf in example.leaves]

    def check(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        rows = [x.shape[0] for x, takes in zip(leaves, batched, strict=True) if takes]
        for other in rows[1:]:
            torch._check(other == rows[0])

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
