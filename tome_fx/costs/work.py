"""A graph as a list of tensor ops with sizes: what each reads, writes and computes at one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tome_fx.costs.ours import own_kernels
from tome_fx.graph.extents import Extents
from tome_fx.graph.fakes import FakeRun
from tome_fx.kernels.choice import HALVES
from tome_fx.ops.modes import UNCALLED

# Products have a kernel each; these too, since a compiler fuses nothing into them.
_ALONE = ("scatter", "scatter_add", "index_add", "index_put", "sort", "topk", "cumsum")
# Where the left operand of a product stands.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
_CONSTANT = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")


@dataclass(frozen=True)
class Value:
    """A tensor: which one, how many bytes and elements it has."""

    key: int
    size: int
    count: int


@dataclass(frozen=True)
class Op:
    """One op of a program, or of a function that a rewrite inserted.

    Attributes:
        node: where in the graph.
        kind: ``view`` computes nothing; ``fused`` runs in one kernel with what it is next to
            (pointwise, reductions); ``alone`` has a kernel of its own.
        macs: of a product, for the whole batch.
        half: is that product in half precision?
    """

    node: Node
    kind: Literal["view", "fused", "alone"]
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    macs: int = 0
    half: bool = False


def work_of(
    module: torch.nn.Module,
    graph: Graph,
    batch: int,
    macs: Mapping[Node, int],
    inputs: Graph,
    kernels: bool = False,
) -> list[Op]:
    """The ops of ``graph``, in order, at ``batch`` images.

    Ops of the program are taken as they stand; functions that a rewrite inserted are looked into.

    Args:
        module: what the graph reads its parameters from.
        macs: of its own nodes, per image, as from :func:`tome_fx.macs.macs_of`.
        inputs: the captured graph; its inputs have sizes that depend on the batch.
        kernels: does the device run our own, which do all of such a function at once?
    """
    runner = _Recorder(module, graph, batch, macs, kernels)
    runner.run_like(inputs)
    return runner.ops


class _Recorder(FakeRun):
    """Runs a graph at a batch and writes down each op."""

    left_out = UNCALLED

    def __init__(
        self,
        module: torch.nn.Module,
        graph: Graph,
        batch: int,
        macs: Mapping[Node, int],
        kernels: bool,
    ) -> None:
        super().__init__(module, Extents(batch), graph)
        self.batch, self.macs, self.kernels = batch, macs, kernels
        self.ops: list[Op] = []
        self.held: list[Any] = []  # an id is one tensor's as long as that lives

    def run_node(self, n: Node) -> Any:
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        if not isinstance(n.target, torch._ops.OpOverload):
            before = len(self.ops)
            with _Inside(self, n):
                result = super().run_node(n)
            given = self.fetch_args_kwargs_from_env(n)
            count = own_kernels(n, given) if self.kernels else 0
            if count:
                self.ops[before:] = self._at_once(n, given, result, count, self.ops[before:])
            return result
        result = super().run_node(n)
        given = self.fetch_args_kwargs_from_env(n)
        self.note(n, n.target, given, result, self.macs.get(n, 0) * self.batch)
        return result

    def note(
        self, node: Node, op: torch._ops.OpOverload, given: Any, result: Any, macs: int
    ) -> None:
        reads, writes = self._values(given), self._values(result)
        reads = () if _name(op) in _CONSTANT else reads
        if not writes:
            return
        kind: Literal["view", "fused", "alone"] = "fused"
        if macs or _name(op) in _ALONE:
            kind = "alone"
        elif op.is_view or not reads:
            kind = "view"  # what is made of nothing is made where it is used
        first = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        half = first.dtype in HALVES
        self.ops.append(Op(node, kind, reads, writes, macs, half))

    def _at_once(
        self, node: Node, given: Any, result: Any, count: int, inside: Sequence[Op]
    ) -> Iterator[Op]:
        """A function as so many kernels: the first does the work, what follows it next to none."""
        reads, writes = self._values(given), self._values(result)
        yield Op(node, "alone", reads, writes, sum(op.macs for op in inside))
        for _ in range(count - 1):
            yield Op(node, "alone", writes[:1], ())

    def _values(self, tree: Any) -> tuple[Value, ...]:
        found = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        self.held.extend(found)
        return tuple(Value(id(t), t.numel() * t.element_size(), t.numel()) for t in found)


class _Inside(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what a function computes, op by op."""

    def __init__(self, recorder: _Recorder, node: Node) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder, self.node = recorder, node

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.recorder.note(self.node, func, (args, kwargs), result, _macs(func, args, result))
        return result


def _macs(op: torch._ops.OpOverload, args: Any, result: Any) -> int:
    """Multiply-accumulates of an op in a function; of fused attention those of its two products."""
    name = _name(op)
    if name in _PRODUCTS:
        return int(result.numel() * args[_PRODUCTS[name]].shape[-1])
    if name.startswith("_scaled_dot_product"):
        query, keys = args[0], args[1].shape[-2]
        found = next(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return int((query.numel() + found.numel()) * keys)
    return 0


def _name(op: torch._ops.OpOverload) -> str:
    return op._schema.name.partition("::")[2].rstrip("_")
