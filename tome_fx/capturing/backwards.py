"""Backwards of a model's own, which no program holds: ``torch.autograd.Function``, and hooks.

class Round(torch.autograd.Function):       a program has what forward computes, and the
    def forward(ctx, x): return x.round()   gradient of that: none, where the model's own
    def backward(ctx, g): return g          passes it straight through
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.utils import _pytree as pytree

from tome_fx.capturing.blame import TORCH
from tome_fx.capturing.rounding import excess, is_inexact
from tome_fx.errors import warn

OWN_GRADIENT = (
    "Write it with what is captured, as x + (x.round() - x).detach() for a gradient that is passed "
    "straight through, or as a module of its own; check=False takes the gradient of what its "
    "forward computes."
)

# Positional arguments, and those by name.
Given: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
# Calls of one function in one module that are asked: what the first passes on, others may cut off.
MOST = 8


@dataclass
class Backwards:
    """What a run of a model was seen to have for its gradients alone.

    Attributes:
        functions: by the path of the module that calls it, an autograd function whose gradient is
            not that of what it computes.
        hooks: paths of the modules that put hooks on values.
        unseen: functions that were called by another name than their ``apply``.
    """

    functions: dict[str, str] = field(default_factory=dict)
    hooks: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)
    _asked: Counter[tuple[str, type]] = field(default_factory=Counter)

    @contextlib.contextmanager
    def noted(self, model: nn.Module) -> Iterator[None]:
        """Within, this thread's run of ``model`` is watched."""
        paths = {id(vars(module)): path for path, module in model.named_modules()}
        apply: Any = vars(Function)["apply"]
        hook: Any = torch.Tensor.register_hook
        thread = threading.get_ident()

        def applied(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
            call = apply.__get__(None, cls)
            if threading.get_ident() == thread and not cls.__module__.startswith("torch."):
                self._see(cls, call, _caller(sys._getframe(1), paths), (args, kwargs))
            return call(*args, **kwargs)

        def hooked(value: Tensor, function: Callable[..., Any]) -> Any:
            frame = sys._getframe(1)
            theirs = not frame.f_code.co_filename.startswith(TORCH)
            if threading.get_ident() == thread and theirs and not isinstance(value, nn.Parameter):
                self.hooks.add(_caller(frame, paths))
            return hook(value, function)

        with (
            patch.object(Function, "apply", classmethod(applied)),
            patch.object(torch.Tensor, "register_hook", hooked),
        ):
            yield

    def reasons(self) -> dict[str, str]:
        """Why the outermost modules with such functions must stay calls in training, by path."""
        return {
            path: f"The gradient of {name} is not that of what its forward computes."
            for path, name in self.functions.items()
            if not _under(path, self.functions.keys() - {path})
        }

    def lost(self, kept: Collection[str]) -> Backwards:
        """What a program does not have in which the modules at the paths of ``kept`` are calls."""
        functions = {p: name for p, name in self.functions.items() if not _under(p, kept)}
        hooks = {path for path in self.hooks if not _under(path, kept)}
        return Backwards(functions, hooks, self.unseen)

    def look_through(self, result: Any) -> None:
        """Find functions that no call was seen of in the gradients of what a model returned.

        ``round = Round.apply``, say at the head of a file, is C++'s own from then on.
        """
        seen = {cls for _, cls in self._asked}
        for cls in _functions_behind(result):
            if cls not in seen and not cls.__module__.startswith("torch."):
                self.unseen.add(cls.__qualname__)

    def _see(self, cls: type[Function], call: Callable[..., Any], path: str, given: Given) -> None:
        if path in self.functions or self._asked[path, cls] >= MOST:
            return
        self._asked[path, cls] += 1
        if _has_other_gradient(cls, call, given):
            self.functions[path] = cls.__qualname__


def _functions_behind(result: Any) -> set[type[Function]]:
    """The autograd functions in the gradients of tensors."""
    values = [value for value in pytree.tree_leaves(result) if isinstance(value, Tensor)]
    left: list[Any] = [value.grad_fn for value in values if value.grad_fn is not None]
    done: set[Any] = set(left)
    while left:
        for node, _ in left.pop().next_functions:
            if node is not None and node not in done:
                done.add(node)
                left.append(node)
    made: list[Any] = [type(node) for node in done if isinstance(node, BackwardCFunction)]
    return {cls._forward_cls for cls in made}


def _under(path: str, others: Collection[str]) -> bool:
    return any(not other or f"{path}.".startswith(f"{other}.") for other in others)


def _caller(frame: FrameType | None, paths: dict[int, str]) -> str:
    """The path of the innermost module whose code made a call."""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(vars(owner)) in paths:
            return paths[id(vars(owner))]
        frame = frame.f_back
    return ""


def _has_other_gradient(cls: type[Function], call: Callable[..., Any], given: Given) -> bool:
    """Does the gradient of a call differ from that of what its forward computes?

    Both are asked at these arguments, for one cotangent. A forward that has none of its own (it
    runs a kernel, writes in place) differs from any. Where neither has one (inside of an op, where
    autograd is off) nothing is known.
    """
    try:
        own = _gradients(call, given)
    except Exception:  # it has no backward to carry over
        return False
    try:
        plain = _gradients(functools.partial(_forward, cls), given)
    except Exception:
        return any(gradient is not None for gradient in own)
    return any(map(_differ, own, plain))


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        given = one if other is None else other
        return given is not None and bool(given.count_nonzero())
    return one.shape != other.shape or excess(one, other, torch.finfo(one.dtype).eps) > 1.0


def _gradients(function: Callable[..., Any], given: Given) -> list[Tensor | None]:
    """Gradients of what ``function`` makes of copies of ``given``, which draw the same numbers."""
    leaves, spec = pytree.tree_flatten(given)
    copies = [
        value.detach().clone().requires_grad_(is_inexact(value))
        if isinstance(value, Tensor)
        else value
        for value in leaves
    ]
    asked = [value for value in copies if isinstance(value, Tensor) and value.requires_grad]
    # Copies of copies: a function may write to what it gets.
    copied = [value.clone() if isinstance(value, Tensor) else value for value in copies]
    args, kwargs = pytree.tree_unflatten(copied, spec)
    devices = {value.device for value in asked if value.device.type == "cuda"}
    with torch.enable_grad(), torch.random.fork_rng(devices=list(devices)):
        made = function(*args, **kwargs)
    made = [v for v in pytree.tree_leaves(made) if isinstance(v, Tensor) and v.requires_grad]
    if not made or not asked:
        return [None] * len(asked)
    return list(torch.autograd.grad(made, asked, list(map(_cotangent, made)), allow_unused=True))


def _cotangent(value: Tensor) -> Tensor:
    """Numbers that are unlike one another, and drawn from no generator."""
    places = torch.arange(1, value.numel() + 1, dtype=torch.float64, device=value.device)
    return places.sin().reshape(value.shape).to(value.dtype)


def _forward(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """What the forward of an autograd function computes, as autograd sees it by itself."""
    if cls.setup_context is not Function.setup_context:
        return cls.forward(*args, **kwargs)
    context = FunctionCtx()
    needs = (isinstance(value, Tensor) and value.requires_grad for value in args)
    context.needs_input_grad = tuple(needs)  # type: ignore[attr-defined]
    return cls.forward(context, *args, **kwargs)


def warn_of_lost(lost: Backwards) -> None:
    """Name modules whose hooks on values, and functions whose gradients, are in no program."""
    if lost.unseen:
        names = ", ".join(sorted(lost.unseen)[:5])
        warn(
            f"The gradient of {names} is not carried over, since a name was kept of its apply "
            "(round = Round.apply), which nothing can see. Call Round.apply(x) where it is used.",
        )
    if lost.hooks:
        names = ", ".join(sorted(path or "the model itself" for path in lost.hooks)[:5])
        warn(
            f"Hooks on values (Tensor.register_hook) in {names} are not carried over: the "
            "gradients that they see or change are seen and changed by none in the result.",
        )
