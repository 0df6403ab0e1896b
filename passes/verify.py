"""Verify: the rewritten graph is well formed, and every shape in it is what it must be.

Tensors without values, of a small batch, run through it, so that a count of tokens that was left
behind shows as a shape error here and not as a wrong result later. What leaves the program must
have the captured shapes and dtypes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from tome_fx import kernels, ops
from tome_fx.errors import MatchingError, VerificationError
from tome_fx.graph.calls import bind
from tome_fx.graph.extents import Extents, tensor_value
from tome_fx.graph.fakes import FakeRun, MetaRun, only_device
from tome_fx.graph.provenance import module_path, source_line
from tome_fx.ops.modes import UNCALLED
from tome_fx.own_matching import OwnMatching
from tome_fx.program import Program

aten = torch.ops.aten
# A batch that no tensor of a model has by chance: a literal in its place would not go unseen.
BATCH = 5


def verify(module: GraphModule, program: Program) -> Extents:
    """Check ``module`` against the captured program and set each node's value in ``meta``.

    Returns:
        The sizes that the values were made with: the captured ones, at :data:`BATCH` images, or
        as near to it as the program takes.

    Raises:
        MatchingError: a matching of the user fails, or its answer is none.
        VerificationError: a node cannot run on the shapes it is given, or an output has changed
            its shape or dtype; the text names the node and where it comes from.
    """
    module.graph.lint()
    sizes = Extents(program.batch_near(BATCH))
    # The plain steps: what is fused later does them too.
    with kernels.using("portable"):
        after = tree_leaves(_run(module, program.graph, sizes))
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


def _run(module: GraphModule, captured: Graph, sizes: Extents) -> Any:
    """The outputs; each node has its value in ``meta`` then."""
    device = only_device(captured, module.graph)
    # A function of the user runs on fake tensors alone: there it draws no numbers of the process.
    if device is not None and not any(map(_own_of, module.graph.nodes)):
        quick = _Quick(module, sizes, device)
        # What the meta device cannot do is no fault of the graph: fake tensors have the last word.
        with contextlib.suppress(Exception):
            return _noted(quick, quick.run_like(captured))
    checker = _Checker(module, sizes)
    return _noted(checker, checker.run_like(captured))


def _noted(run: FakeRun, outputs: Any) -> Any:
    for node, value in run.env.items():
        node.meta["val"] = run.told(value)
    return run.told(outputs)


class _Quick(MetaRun):
    """Finds out whether all is well."""

    left_out = UNCALLED

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        _check_written(n, self.env)
        return value


class _Checker(FakeRun):
    """Says at which node a shape is wrong."""

    left_out = UNCALLED

    def run_node(self, n: Node) -> Any:
        try:
            value = super().run_node(n)
            _check_written(n, self.env)
        except Exception as error:
            own = _own_of(n)
            if own is not None:
                self.extra_traceback = False  # what failed is no line of the model
                raise _own_failed(own, n, error) from error
            raise VerificationError(
                f"{n.name} ({n.target}) cannot run on merged tokens: {error}. It comes from "
                f"{module_path(n) or 'the model'} {source_line(n)}. This is a defect of tome_fx "
                "or of a custom rule."
            ) from error
        return value


def _own_of(node: Node) -> OwnMatching | None:
    """The matching of the user that a node calls, or whose answer it reads."""
    source = node.args[0] if node.target is ops.plan_of_pairs else node
    target = source.target if isinstance(source, Node) else None
    return target if isinstance(target, OwnMatching) else None


def _own_failed(own: OwnMatching, node: Node, error: Exception) -> MatchingError:
    if isinstance(error, MatchingError):
        return error
    step = "."
    if isinstance(error, DataDependentOutputException):
        step = " reads a number out of a tensor: it is run on tensors without values there, and "
        step += "traced by compilers."
    first = str(error).partition("\n")[0].rstrip(".")
    told = f"{type(error).__name__}: {first}" if step == "." else first
    return MatchingError(f"matching: {own.told} fails at {module_path(node)}: {told}{step}")


def _check_written(node: Node, made: Mapping[Node, Any]) -> None:
    """Without values nothing compares what is written with the place that it is written to."""
    if node.target is not aten.slice_scatter.default:
        return
    call = bind(node)
    whole, piece = made[call["self"]], made[call["src"]]
    place = aten.slice.Tensor(whole, call["dim"], call["start"], call["end"], call["step"])
    if place.shape != piece.shape:
        raise RuntimeError(f"{tuple(piece.shape)} is written to {tuple(place.shape)}")
