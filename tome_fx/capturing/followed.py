"""Values of a trace that no input has a part in, computed for real beside it.

Export traces values without numbers, so code that reads one stops it. Where all that a value is
made of is known, so is the value: a number is read from there.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from tome_fx.capturing.calling import other_forward

_IN_PLACE = frozenset(
    {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__",
     "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
)  # fmt: skip
_READERS = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "equal", "allclose"}
)
# What these make has the shape, or the kind, of what they get, and none of its numbers.
OF_SHAPE = frozenset(
    {"full_like", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like", "zeros_like"}
)
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Known:
    """A traced value (kept, so that its id is its own), what it is, and what it is made of.

    It has several values where it was computed for several batches.
    """

    traced: Tensor
    values: tuple[Tensor, ...]
    names: frozenset[str]


class Followed(TorchFunctionMode):
    """Within, reading a number of a known value gives that number.

    A subclass says what is known by itself. What something unknown was written to is known no
    longer, nor is what shares a name with it. Nor is what draws random numbers.
    """

    # Is a value known that was written to, where all that was written is?
    follows_writes = False

    def __init__(self, most: int, more: Sequence[int] = (0,)) -> None:
        """``most``: numbers in a value that is followed; ``more``: images, beside the example's.

        Each value is computed for all of ``more``, and a number is read if it is the same for all.
        """
        super().__init__()
        self._most, self._more = most, tuple(more)
        self._known: dict[int, Known] = {}
        self._written: set[str] = set()

    def known_by_itself(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor that was not made within."""
        return None

    def name_of_new(self, func: Any) -> str | None:
        """A name for what ``func`` makes of numbers alone, if that is known."""
        return None

    def read(self, names: Collection[str]) -> None:
        """A number of what has these names was read."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [v for v in pytree.tree_leaves((args, named)) if isinstance(v, Tensor)]
        found = {id(tensor): self._find(tensor) for tensor in tensors}
        known = {place: seen for place, seen in found.items() if seen is not None}
        names = frozenset[str]().union(*(seen.names for seen in known.values()))
        goals = written_by(func, args, named)
        new = None if known and len(known) == len(found) else self.name_of_new(func)
        if new is not None and (not found or func.__name__ in OF_SHAPE):
            return self._followed(func, known, frozenset({new}), args, named)
        if len(known) < len(found) or (goals and not self.follows_writes):
            self._written |= {n for t in goals if (seen := known.get(id(t))) for n in seen.names}
        elif known:
            return self._followed(func, known, names, args, named)
        return func(*args, **named)

    def _followed(
        self,
        func: Any,
        known: Mapping[int, Known],
        names: frozenset[str],
        args: Any,
        kwargs: Any,
    ) -> Any:
        """``func`` on known values: the number that it reads, or its result, known from here on."""
        if func.__name__ in _READERS:
            numbers = self._computed(func, known, args, kwargs)
            if numbers and all(number == numbers[0] for number in numbers):
                self.read(names)
                return numbers[0]
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        traced = pytree.tree_leaves(result)
        makes = any(isinstance(leaf, Tensor) for leaf in traced)
        if not makes and not written_by(func, args, kwargs):
            return result
        computed = self._computed(func, known, args, kwargs)
        rows = [pytree.tree_leaves(one) for one in computed]
        if any(len(row) != len(traced) for row in rows):
            return result
        for leaf, *values in zip(traced, *rows, strict=True):
            if values and isinstance(values[0], Tensor) and values[0].numel() <= self._most:
                self._known[id(leaf)] = Known(leaf, tuple(values), names)
        return result

    def _computed(self, func: Any, known: Mapping[int, Known], args: Any, kwargs: Any) -> list[Any]:
        """What ``func`` makes for each number of images; nothing where that cannot be told."""
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            state, made = torch.get_rng_state(), list[Any]()
            for place, more in enumerate(self._more):

                def own(leaf: Any, place: int = place, more: int = more) -> Any:
                    if isinstance(leaf, Tensor):
                        seen = known.get(id(leaf))
                        return _empty(leaf, more) if seen is None else seen.values[place]
                    return _sized(leaf, more)

                try:
                    own_args, own_kwargs = pytree.tree_map(own, (args, kwargs))
                    made.append(func(*own_args, **own_kwargs))
                except Exception:  # the trace itself says what is wrong with it
                    return []
            if torch.equal(state, torch.get_rng_state()):
                return made
            torch.set_rng_state(state)
            return []

    def _find(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor: nothing once what it is of was written to."""
        known = self._known.get(id(tensor)) or self.known_by_itself(tensor)
        if known is None:
            return None
        self._known[id(tensor)] = known
        return None if known.names & self._written else known


@contextmanager
def followed_in(model: nn.Module, mode: Followed) -> Iterator[None]:
    """Within, ``mode`` is on while ``forward`` of ``model`` runs, and not for a tracer's own ops.

    A tracer that reads the code has no numbers beside its values.
    """
    forward = model.forward

    @functools.wraps(forward)
    def following(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return forward(*args, **kwargs)
        with mode:
            return forward(*args, **kwargs)

    with other_forward(model, following):
        yield


def _empty(like: Tensor, more: int) -> Tensor:
    """A value of which no more is read than its shape and its kind."""
    shape = [_sized(size, more) for size in like.shape]
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _sized(number: Any, more: int) -> Any:
    """A number of sizes for so many images more than the example has; others as they are.

    Raises:
        ValueError: it follows from values.
    """
    if not isinstance(number, _NUMBERS):
        return number
    node: Any = number.node
    if node.hint is None:
        raise ValueError("it follows from values")
    if not more:
        return node.hint
    env = node.shape_env
    # torch 2.11 has the older name, which newer ones warn of.
    known = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val
    sizes = {symbol: int(known[symbol]) + more for symbol in node.expr.free_symbols}
    return node.pytype(node.expr.subs(sizes))


def written_by(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """What a function or a method writes to, by its name: its first argument, or ``out``."""
    name = func if isinstance(func, str) else getattr(func, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    goals = [args[:1]] if own or name in _IN_PLACE or f"__{name}__" in _IN_PLACE else []
    return [g for g in pytree.tree_leaves([*goals, kwargs.get("out")]) if g is not None]
