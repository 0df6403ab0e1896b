"""Inputs with one number of rows: said to the tracer, where a model takes it as given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.examples import Example
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import same_size, tensor_value
from tome_fx.program import Program

aten = torch.ops.aten


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


def picks_across(program: Program) -> bool:
    """Is something picked from as many images as there are, by the places of some other number?

    ``tokens.gather(1, places)`` asks of both numbers only that the second is not larger, which no
    model means.
    """
    picks = program.graph.find_nodes(op="call_function", target=aten.gather.default)
    return any(_differ(node) for node in picks)


def _differ(node: torch.fx.Node) -> bool:
    call = bind(node)
    values = [tensor_value(call[name]) for name in ("self", "index")]
    first, second = (value.shape[0] if value is not None and value.dim() else 0 for value in values)
    return call["dim"] != 0 and not same_size(first, second)
