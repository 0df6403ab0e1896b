"""A graph run on fake tensors of given sizes: shapes and dtypes without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Interpreter, Node

from tome_fx.graph.extents import Extents
from tome_fx.graph.leaves import Leaf


class FakeRun(Interpreter):
    """Runs a graph under :attr:`mode`, on inputs as a captured graph has them.

    Args:
        module: what the graph reads its parameters from.
        sizes: what its symbols stand for.
        graph: the one of ``module`` if None.
    """

    def __init__(self, module: torch.nn.Module, sizes: Extents, graph: Graph | None = None) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.sizes = sizes
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def run_like(self, captured: Graph) -> Any:
        """Run on the inputs of ``captured``; returns what the graph does."""
        inputs = [node.meta.get("val") for node in captured.nodes if node.op == "placeholder"]
        with self.mode, torch.no_grad():
            return self.run(*map(self._fake, inputs), enable_io_processing=False)

    def _fake(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty(self.sizes.shape(value), dtype=value.dtype, device=value.device)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A leaf has no more than shapes to tell."""
        if isinstance(target, Leaf):
            return target.like(*args)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: Node) -> Any:
        """Run one node; a parameter is fake where its value is known."""
        held = n.meta.get("val") if n.op == "get_attr" else None
        return super().run_node(n) if held is None else self._fake(held)
