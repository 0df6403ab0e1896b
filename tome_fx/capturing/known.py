"""What constants alone make is known while a model is traced, so that its code may read it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._subclasses.fake_tensor as fake
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode

from tome_fx.graph.calls import bind
from tome_fx.graph.extents import known_size
from tome_fx.graph.values import needed_for, value_of

# What to do about code that reads an input.
WRITE_IN = (
    "Write what it reads into forward, in a wrapper say, as torch.tensor([[1, 16, 16]]), and "
    "transform the wrapper."
)
# Numbers in a constant that is followed; by themselves, fake tensors follow those of one number.
_MOST = 1 << 16


@contextmanager
def constants_known() -> Iterator[None]:
    """Within, fake tensors compute beside their shapes what ``torch.tensor([...])`` leads to.

    A grid or a list of lengths that is written into ``forward`` decides shapes as a list would:
    ``tolist``, ``nonzero`` and ``unique`` of it are no values of an input. A constant that the
    model writes to is none from then on, nor is what shares its memory: that is for fake tensors to
    know, and proxies, which follow constants too, do not. It is for the whole process, so for one
    thread at a time (``locating.LOCK``).
    """
    with patch.object(fake, "CONSTANT_NUMEL_LIMIT", _MOST):
        yield


class ranges_known(TorchFunctionMode):
    """Within, ``torch.arange`` of plain numbers makes a constant: code may read what comes of it.

    Qwen2.5-VL sorts the numbers of its patches by windows, say, and counts them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        ends = (v.node.maybe_as_int() if isinstance(v, torch.SymInt) else v for v in args)
        numbers = [end for end in ends if type(end) is int]
        allowed = {key: named[key] for key in named.keys() & {"dtype", "device"}}
        plain = numbers and len(numbers) == len(args) and allowed.keys() == named.keys()
        if func is not torch.arange or not plain or len(range(*numbers)) > _MOST:
            return func(*args, **named)
        return torch.tensor([*range(*numbers)], **{"dtype": torch.int64, **allowed})


def count_again(graph: Graph, constants: Mapping[str, Any]) -> None:
    """Let constants that count 0, 1, 2, ... be calls of ``arange`` again, as rules read them."""
    for node in graph.find_nodes(op="get_attr"):
        value = constants.get(node.target)
        if not isinstance(value, torch.Tensor) or value.dim() != 1 or value.is_meta:
            continue
        if value.dtype is not torch.int64 or value.tolist() != [*range(len(value))]:
            continue
        options: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
        with graph.inserting_before(node):
            made = graph.call_function(torch.ops.aten.arange.default, (len(value),), options)
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def compute(module: GraphModule, constants: Mapping[str, Any]) -> None:
    """Put values in the place of calls whose shape follows from ``constants``, as buffers.

    ``repeat_interleave`` of a grid that is written into ``forward``, say: its shape was known when
    it was traced, and no compiler could tell it from the program.
    """
    graph = module.graph
    for place, node in enumerate(list(graph.nodes)):
        if not _follows_from_values(node) or any(map(_is_of_shapes, needed_for(node))):
            continue
        value = value_of(node, constants)
        if value is None:
            continue
        name = f"_computed_{place}"
        module.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            known = graph.get_attr(name)
        known.meta = dict(node.meta)
        node.replace_all_uses_with(known)
        graph.erase_node(node)


def _is_of_shapes(node: Node) -> bool:
    """Is a value a size that an input may have, or of such sizes? A number for each image is."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    return any(isinstance(s, torch.SymInt) and known_size(s) is not None for s in sizes)


def _follows_from_values(node: Node) -> bool:
    """Does the shape of what a call makes follow from the values of what it reads?"""
    op = node.target
    if op is operator.getitem and isinstance(node.args[0], Node):
        return _follows_from_values(node.args[0])  # one of several that a call makes
    if op is torch.ops.aten.index.Tensor:
        return any(n is not None and _is_mask(n.meta["val"]) for n in bind(node)["indices"])
    tagged = isinstance(op, torch._ops.OpOverload) and torch.Tag.dynamic_output_shape in op.tags
    return tagged or op is torch.ops.aten.repeat_interleave.self_Tensor


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
