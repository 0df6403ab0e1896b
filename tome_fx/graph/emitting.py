"""Nodes that are added to a captured graph, with the values that they have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.node import map_arg

from tome_fx.graph.provenance import origin_of


def emit(
    place: Node, mode: FakeTensorMode | None, target: Callable[..., Any], *args: Any, **kwargs: Any
) -> Node:
    """A call of an op for what ``place`` is made of, its value being what fake tensors make of it.

    It stands where the graph inserts.
    """
    made = place.graph.call_function(target, args, kwargs)
    known, named = map_arg((args, kwargs), lambda node: node.meta["val"])
    with mode or contextlib.nullcontext(), torch.no_grad():
        made.meta = {**origin_of(place), "val": target(*known, **named)}
    return made
