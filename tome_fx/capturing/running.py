"""A captured program run node by node, and which module of its model it departs from first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from tome_fx.capturing.calling import inputs_of
from tome_fx.capturing.describing import mutates, no_fast_path
from tome_fx.capturing.examples import Example, run_apart
from tome_fx.graph.checks import is_check
from tome_fx.graph.provenance import module_paths
from tome_fx.program import Program


def run_program(program: Program, example: Example) -> Any:
    """What a program returns for an example: its leaves, in their order."""
    return _Run(program).result(example)


def run_model(model: nn.Module, example: Example) -> Any:
    """What the model itself returns, without the fast path that no capture takes."""
    with no_fast_path():
        return run_apart(model, example)


def first_unlike(
    program: Program, model: nn.Module, example: Example, alike: Callable[[Tensor, Tensor], bool]
) -> str:
    """The path of the first module to end that makes other tensors of what it gets; "" if none."""
    run = _Run(program, keep=True)
    run.result(example)
    values = {node: value for node, value in run.env.items() if isinstance(value, Tensor)}
    inside: dict[str, list[Tensor]] = {}
    for node, value in values.items():
        for path in module_paths(node):
            inside.setdefault(path, []).append(value)

    def has(value: Tensor, among: Iterable[Tensor]) -> bool:
        return any(alike(value, own) for own in among if own.shape == value.shape)

    for path, came, made in _calls(model, example):
        own = inside.get(path, [])
        if own and not has(made, own) and (came is None or has(came, values.values())):
            return path
    return ""


def _calls(model: nn.Module, example: Example) -> list[tuple[str, Tensor | None, Tensor]]:
    """Path, first tensor in and first tensor out of each call of a module, in order of its end."""
    calls: list[tuple[str, Tensor | None, Tensor]] = []

    def noting(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            came, made = _tensors((args, kwargs)), _tensors(result)
            if made:
                calls.append((path, came[0].clone() if came else None, made[0].clone()))

        return note

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                stack.enter_context(_hooked(module, noting(path)))
        run_model(model, example)
    return calls


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _hooked(module: nn.Module, hook: Callable[..., None]) -> Any:
    """A context at whose end the hook is gone."""
    return module.register_forward_hook(hook, with_kwargs=True)


class _Run(Interpreter):
    """A captured graph, run node by node; ``keep`` holds all that its nodes make."""

    def __init__(self, program: Program, keep: bool = False) -> None:
        super().__init__(nn.Module(), garbage_collect_values=not keep, graph=program.graph)
        self.extra_traceback = False
        copies = mutates(program.graph)
        self._held = {
            name: value.clone() if copies and isinstance(value, Tensor) else value
            for name, value in program.constants.items()
        }

    def result(self, example: Example) -> Any:
        given = dict(inputs_of(self.graph, example))
        with torch.no_grad(), no_fast_path():
            return self.run(initial_env=given, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        return None if is_check(n) else super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._held[target]
