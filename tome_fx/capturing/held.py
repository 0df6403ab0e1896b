"""``torch.fx.symbolic_trace`` that sees what is done to the model's buffers.

Left alone, it computes on buffers while it traces: their values of that moment become constants, a
branch on one is taken without a word, and a write to one happens to the model. Here an op on
buffers is recorded like any other, and also computed beside, so that shapes and numbers can be
read from there. Whose numbers were read is told.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.fx.node import map_aggregate

from tome_fx.capturing.once import RunOnce
from tome_fx.capturing.writes import written_by

# What these say of a tensor is its shape or its kind, not its numbers.
_OF_SHAPE = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "storage_offset",
     "is_floating_point", "is_complex", "is_contiguous", "is_signed", "get_device"}
)  # fmt: skip


class Recorded(Proxy):
    """A recorded value on which ``x += y`` is recorded as what it is: a write."""


def _in_place(name: str) -> Callable[[Recorded, Any], Any]:
    def record(self: Recorded, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior",
              "ixor"):  # fmt: skip
    setattr(Recorded, f"__{_name}__", _in_place(_name))


@dataclass(frozen=True)
class Known:
    """What a recorded value is, and the buffers that it is made of."""

    value: Any
    names: frozenset[str]


class Held(Recorded):
    """A recorded value that is made of buffers alone: its shape and its numbers can be read."""

    def __init__(self, node: Node, tracer: HoldingTracer, known: Known) -> None:
        super().__init__(node, tracer)
        self.known = known

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.known.value, name)
        if inspect.isroutine(found):
            return super().__getattr__(name)
        if _has_tensor(found):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return found

    def __len__(self) -> int:
        return len(self.known.value)

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, place) for place in range(len(self))])

    def __bool__(self) -> bool:
        return bool(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __float__(self) -> float:
        return float(self._read())

    def __index__(self) -> int:
        return operator.index(self._read())

    def _read(self) -> Any:
        assert isinstance(self.tracer, HoldingTracer)
        return self.tracer.read(self.known)


class HoldingTracer(torch.fx.Tracer):
    """A tracer that records what is done to buffers, and no op under another mode than its own.

    ``names`` are the buffers whose numbers were read: what was traced is right for their values.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._written: set[str] = set()
        self._modes = _modes()
        self._thread = threading.get_ident()
        self.once = RunOnce()

    def create_arg(self, a: Any) -> Any:
        """As it is, but for a constant that the model draws at each call."""
        self.once.refuse_drawn(a)
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Tracing patches every module of the process; those of other threads run as they are."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The same for what other threads read of their modules."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: Node) -> Proxy:
        return Recorded(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        """The call, recorded; or what it yields, where that is no tensor and known."""
        known = self._known(kind, target, args, kwargs)
        if known is not None and not _has_tensor(known.value):
            return known.value
        # Buffers ask for no gradient: whether one is recorded changes nothing for them.
        alike = 0 if known is None or _asks(known.value) else 1
        if _modes()[alike:] != self._modes[alike:]:
            raise RuntimeError(
                "a region under no_grad, enable_grad or autocast is not recorded by symbolic "
                "tracing. Use capture='export'."
            )
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        return proxy if known is None else Held(proxy.node, self, known)

    def read(self, known: Known) -> Any:
        """The value of ``known``, whose numbers are about to be read."""
        if known.names & self._written:
            names = ", ".join(sorted(known.names & self._written))
            raise RuntimeError(f"it reads a number of {names}, which it writes to.")
        self.names |= known.names
        return known.value

    def _known(self, kind: str, target: Any, args: Any, kwargs: Any) -> Known | None:
        """What a call yields, where that can be computed here and now."""
        if kind == "get_attr":
            buffer = dict(self.root.named_buffers()).get(target)
            return None if buffer is None else Known(buffer.detach(), frozenset({target}))
        if kind not in ("call_function", "call_method") or self._writes(target, args, kwargs):
            return None
        proxies = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Proxy)]
        held = [leaf.known for leaf in proxies if isinstance(leaf, Held)]
        if not proxies or len(held) < len(proxies):
            return None
        own, named = map_aggregate((args, kwargs), _value)
        run = target if kind == "call_function" else getattr(own[0], target)
        with torch.no_grad():
            made = run(*(own if run is target else own[1:]), **named)
        known = Known(made, frozenset[str]().union(*(one.names for one in held)))
        if not _has_tensor(made) and target not in _OF_SHAPE:
            self.read(known)
        return known

    def _writes(self, target: Any, args: Any, kwargs: Any) -> bool:
        """Is the call a write? Buffers that it writes to are no longer known."""
        goals = written_by(target, args, kwargs)
        if any(isinstance(goal, Tensor) for goal in goals):
            raise RuntimeError(
                "it writes to a tensor that is a constant for symbolic tracing. Use "
                "capture='export'."
            )
        self._written |= {n for goal in goals if isinstance(goal, Held) for n in goal.known.names}
        return bool(goals)


def _modes() -> tuple[bool, ...]:
    devices = ("cpu", "cuda")
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in devices)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(value, lambda leaf: found.append(leaf))
    return found


def _value(leaf: Any) -> Any:
    return leaf.known.value if isinstance(leaf, Held) else leaf


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in _leaves(value))


def _asks(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in _leaves(value))
