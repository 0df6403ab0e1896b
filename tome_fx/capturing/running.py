"""A captured program run node by node, and which module of its model it departs from first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from tome_fx.capturing.calling import inputs_of
from tome_fx.capturing.describing import no_fast_path
from tome_fx.capturing.examples import Example, draws_undone, run_apart
from tome_fx.capturing.rounding import allowed, excess, norm_of
from tome_fx.capturing.tensors import tensors_in
from tome_fx.graph.calls import writes
from tome_fx.graph.checks import is_check
from tome_fx.graph.provenance import module_paths
from tome_fx.graph.strided import VIEWED
from tome_fx.program import Program


def run_program(program: Program, example: Example) -> Any:
    """What the graph of a program returns for an example, which keeps its values."""
    return _Run(program).result(example)


def run_model(model: nn.Module, example: Example) -> Any:
    """What the model itself returns, without the fast path that no capture takes."""
    with no_fast_path():
        return run_apart(model, example, torch.is_grad_enabled())


@dataclass(frozen=True)
class _Made:
    """A tensor and its norm: what differs in that need not be compared."""

    value: Tensor
    norm: float

    def is_like(self, other: _Made, precision: float) -> bool:
        a, b = self.value, other.value
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        near = abs(self.norm - other.norm) <= allowed(self.norm, a.numel(), precision)
        return near and excess(a, b, precision) <= 1.0


def first_unlike(program: Program, model: nn.Module, example: Example, precision: float) -> str:
    """The path of the first module to end that makes other tensors of what it gets; "" if none."""
    run = _Run(program, keep=True)
    run.result(example)
    inside: dict[str, list[_Made]] = {}
    every: list[_Made] = []
    for node, value in run.env.items():
        if isinstance(value, Tensor):
            every.append(_Made(value, norm_of(value)))
            for path in module_paths(node):
                inside.setdefault(path, []).append(every[-1])

    def has(value: Tensor, among: list[_Made]) -> bool:
        own = _Made(value, norm_of(value))
        return any(own.is_like(other, precision) for other in among)

    for path, came, made in _calls(model, example):
        own = inside.get(path, [])
        if own and not has(made, own) and (came is None or has(came, every)):
            return path
    return ""


def _calls(model: nn.Module, example: Example) -> list[tuple[str, Tensor | None, Tensor]]:
    """Path, first tensor in and first tensor out of each call of a module, in order of its end."""
    calls: list[tuple[str, Tensor | None, Tensor]] = []

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            came, made = tensors_in((args, kwargs)), tensors_in(result)
            if made:
                first = came[0].detach().clone() if came else None
                calls.append((path, first, made[0].detach().clone()))

        return note

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                stack.enter_context(module.register_forward_hook(noting(path), with_kwargs=True))
        run_model(model, example)
    return calls


class _Run(Interpreter):
    """A captured graph, run node by node; ``keep`` holds all that its nodes make."""

    def __init__(self, program: Program, keep: bool = False) -> None:
        super().__init__(nn.Module(), garbage_collect_values=not keep, graph=program.graph)
        self.extra_traceback = False
        # Some ops write to buffers though their schema does not say so (running statistics). Of
        # weights, which are large, only those are copied that the program says it writes to.
        held = program.graph.find_nodes(op="get_attr")
        written = {str(node.target) for node in held if any(map(writes, node.users))}
        self._held = {
            name: _own(value.data if name in written else value)
            for name, value in program.constants.items()
        }

    def result(self, example: Example) -> Any:
        given = {node: _own(value) for node, value in inputs_of(self.graph, example)}
        with torch.no_grad(), no_fast_path(), draws_undone(self._held.values()):
            return self.run(initial_env=given, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        return None if is_check(n) else super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Views are copies where they must be, as they become reshapes in what is made of it."""
        target = torch.ops.aten.reshape.default if target in VIEWED else target
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._held[target]


def _own(value: Any) -> Any:
    """A copy of what a run may write to."""
    tensor = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return value.detach().clone() if tensor else value
