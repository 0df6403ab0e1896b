"""Verify: the rewritten graph is well formed, and every shape in it is what it must be.

Fake tensors run through it with the batch still symbolic, so that a count of tokens that was left
behind shows as a shape error here and not as a wrong result later. What leaves the program must
have the captured shapes and dtypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from tome_fx.errors import VerificationError
from tome_fx.graph.extents import Extents, fake_mode_of
from tome_fx.graph.provenance import module_path, source_line


def verify(module: GraphModule, captured: Graph, extents: Extents) -> GraphModule:
    """Check ``module`` and set the fake value of each node in ``meta``.

    Raises:
        VerificationError: a node cannot run on the shapes it is given, or an output has changed
            its shape or dtype; the text names the node and where it comes from.
    """
    module.graph.lint()
    values = _Checker(module).run(*_inputs(captured))
    before = [_value(leaf) for leaf in tree_leaves(_output(captured).args[0])]
    after = tree_leaves(values)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if not isinstance(old, torch.Tensor):
            continue
        if extents.shape(old) != extents.shape(new) or old.dtype != new.dtype:
            raise VerificationError(
                f"output {index} was {old.dtype} {tuple(old.shape)} and became "
                f"{new.dtype} {tuple(new.shape)}. This is a defect of tome_fx or of a custom rule."
            )
    return module


class _Checker(Interpreter):
    """Runs a graph on fake tensors and says at which node a shape is wrong."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.mode = fake_mode_of(module.graph)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if self.mode is None:
            return super().run(*args, enable_io_processing=False)
        # Symbolic sizes in composite ops need the Python dispatcher.
        with self.mode, enable_python_dispatcher(), torch.no_grad():
            return super().run(*args, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr" and "val" in n.meta:
            return n.meta["val"]
        try:
            value = super().run_node(n)
        except Exception as error:
            raise VerificationError(
                f"{n.name} ({n.target}) cannot run on merged tokens: {error}. It comes from "
                f"{module_path(n) or 'the model'} {source_line(n)}. This is a defect of tome_fx "
                "or of a custom rule."
            ) from error
        n.meta["val"] = value
        return value


def _inputs(captured: Graph) -> list[Any]:
    return [node.meta["val"] for node in captured.nodes if node.op == "placeholder"]


def _output(graph: Graph) -> Node:
    return graph.output_node()


def _value(leaf: Any) -> Any:
    return leaf.meta.get("val") if isinstance(leaf, Node) else leaf
