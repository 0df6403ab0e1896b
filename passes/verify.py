"""Verify: the rewritten graph is well formed, and every shape in it is what it must be.

Fake tensors of a small batch run through it, so that a count of tokens that was left behind shows
as a shape error here and not as a wrong result later. What leaves the program must have the
captured shapes and dtypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from tome_fx import kernels
from tome_fx.errors import VerificationError
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import Extents, tensor_value
from tome_fx.graph.fakes import FakeRun
from tome_fx.graph.provenance import module_path, source_line
from tome_fx.program import Program

aten = torch.ops.aten
# A batch that no tensor of a model has by chance: a literal in its place would not go unseen.
BATCH = 5


def verify(module: GraphModule, program: Program) -> Extents:
    """Check ``module`` against the captured program and set each node's value in ``meta``.

    Returns:
        The sizes that the values were made with: the captured ones, at :data:`BATCH` images.

    Raises:
        VerificationError: a node cannot run on the shapes it is given, or an output has changed
            its shape or dtype; the text names the node and where it comes from.
    """
    module.graph.lint()
    sizes = Extents(BATCH)
    # The plain steps: what is fused later does them too.
    with kernels.using("portable"):
        after = tree_leaves(_Checker(module, sizes).run_like(program.graph))
    before = tree_leaves(program.graph.output_node().args[0])
    # Tracing notes a switch of autocast and does not throw it: dtypes behind it are not known.
    same = not any("autocast" in str(node.target) for node in program.graph.nodes)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        value = tensor_value(old) if isinstance(old, Node) else None
        if value is None:
            continue
        if sizes.shape(value) != tuple(new.shape) or (same and value.dtype != new.dtype):
            raise VerificationError(
                f"output {index} was {value.dtype} {sizes.shape(value)} and became "
                f"{new.dtype} {tuple(new.shape)}. This is a defect of tome_fx or of a custom rule."
            )
    return sizes


class _Checker(FakeRun):
    """Says at which node a shape is wrong."""

    def run_node(self, n: Node) -> Any:
        try:
            value = super().run_node(n)
            _check_written(n)
        except Exception as error:
            raise VerificationError(
                f"{n.name} ({n.target}) cannot run on merged tokens: {error}. It comes from "
                f"{module_path(n) or 'the model'} {source_line(n)}. This is a defect of tome_fx "
                "or of a custom rule."
            ) from error
        n.meta["val"] = value
        return value


def _check_written(node: Node) -> None:
    """Fake kernels do not compare what is written with the place that it is written to."""
    if node.target is not torch.ops.aten.slice_scatter.default:
        return
    call = bind(node)
    whole, piece = (tensor_value(call[name]) for name in ("self", "src"))
    assert whole is not None
    assert piece is not None
    place = aten.slice.Tensor(whole, call["dim"], call["start"], call["end"], call["step"])
    if place.shape != piece.shape:
        raise RuntimeError(f"{tuple(piece.shape)} is written to {tuple(place.shape)}")
