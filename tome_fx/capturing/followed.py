"""Values of a trace that no input has a part in, computed for real beside it.

Export traces values without numbers, so code that reads one stops it. Where all that a value is
made of is known, so is the value: a number is read from there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from tome_fx.capturing.calling import other_forward
from tome_fx.capturing.sizes import Scenario, sized
from tome_fx.capturing.writes import draws, written_by

_READERS = frozenset(
    {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "equal", "allclose"}
)
# What these make has the shape, or the kind, of what they get, and none of its numbers.
OF_SHAPE = frozenset(
    {"full_like", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like", "zeros_like"}
)


@dataclass(frozen=True)
class Known:
    """A traced value (kept, so that its id is its own), what it is, and what it is made of.

    It has several values where it was computed for several batches.
    """

    traced: Tensor
    values: tuple[Tensor, ...]
    names: frozenset[str] = frozenset()


class Followed(TorchFunctionMode):
    """Within, reading a number of a known value gives that number.

    A subclass says what is known by itself. What something unknown was written to is known no
    longer, nor is what shares its memory. Nor is what draws random numbers.
    """

    # Is a value known that was written to, where all that was written is?
    follows_writes = False

    def __init__(self, most: int, scenarios: tuple[Scenario, ...] = (Scenario(),)) -> None:
        """``most``: numbers in a value that is followed.

        Each value is computed for the batches of all ``scenarios``, and a number is read if it is
        the same in all.
        """
        super().__init__()
        self._most, self._scenarios = most, scenarios
        self._known: dict[int, Known] = {}
        # By what is known: which memory it is in, and how often that had been written to.
        self._memory: dict[int, int] = {}
        self._versions: dict[int, int] = {}
        self._lost: set[int] = set()
        self._written: set[str] = set()
        self._memories = itertools.count()

    def known_by_itself(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor that was not made within."""
        return None

    def makes(self, func: Any) -> bool:
        """Is what ``func`` makes of numbers alone known?"""
        return False

    def read(self, names: Collection[str]) -> None:
        """A number of what has these names was read."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [v for v in pytree.tree_leaves((args, named)) if isinstance(v, Tensor)]
        found = {id(tensor): self._find(tensor) for tensor in tensors}
        known = {place: seen for place, seen in found.items() if seen is not None}
        goals = written_by(func, args, named)
        whole = len(known) == len(found) and bool(known)
        new = not goals and self.makes(func) and (not found or _name(func) in OF_SHAPE)
        if draws(func) or not (whole or new) or (goals and not self.follows_writes):
            self._lose(goals)
            return func(*args, **named)
        return self._followed(func, known, goals, args, named)

    def _followed(
        self, func: Any, known: Mapping[int, Known], goals: list[Any], args: Any, kwargs: Any
    ) -> Any:
        """``func`` on known values: the number that it reads, or its result, known from here on."""
        names = frozenset[str]().union(*(seen.names for seen in known.values()))
        if _name(func) in _READERS:
            numbers = self._computed(func, known, args, kwargs)
            if numbers and all(number == numbers[0] for number in numbers):
                self.read(names)
                return numbers[0]
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        traced = pytree.tree_leaves(result)
        if not goals and not any(isinstance(leaf, Tensor) for leaf in traced):
            return result
        rows = [pytree.tree_leaves(one) for one in self._computed(func, known, args, kwargs)]
        if not rows or any(len(row) != len(traced) for row in rows):
            self._lose(goals)
            return result
        for leaf, *values in zip(traced, *rows, strict=True):
            if isinstance(values[0], Tensor) and values[0].numel() <= self._most:
                self._note(Known(leaf, tuple(values), names), known.values())
        self._wrote(goals)
        return result

    def _computed(self, func: Any, known: Mapping[int, Known], args: Any, kwargs: Any) -> list[Any]:
        """What ``func`` makes in each scenario; nothing where that cannot be told."""
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            state, made = torch.get_rng_state(), list[Any]()
            for place, scenario in enumerate(self._scenarios):

                def own(leaf: Any, place: int = place, scenario: Scenario = scenario) -> Any:
                    if isinstance(leaf, Tensor):
                        seen = known.get(id(leaf))
                        return _empty(leaf, scenario) if seen is None else seen.values[place]
                    return sized(leaf, scenario)

                try:
                    own_args, own_kwargs = pytree.tree_map(own, (args, kwargs))
                    made.append(func(*own_args, **own_kwargs))
                except Exception:  # the trace itself says what is wrong with it
                    made = []
                    break
            if torch.equal(state, torch.get_rng_state()):
                return made
            torch.set_rng_state(state)
            return []

    def _find(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor: nothing once what it is of was written to."""
        known = self._known.get(id(tensor))
        if known is None:
            known = self.known_by_itself(tensor)
            if known is None:
                return None
            self._note(known, ())
            if id(tensor) not in self._known:
                return None
        lost = self._memory[id(tensor)] in self._lost or bool(known.names & self._written)
        return None if lost or self._versions[id(tensor)] != _version(tensor) else known

    def _note(self, known: Known, made_of: Collection[Known]) -> None:
        try:
            place = known.values[0].untyped_storage().data_ptr()
        except NotImplementedError:  # under vmap or grad of torch.func
            return
        shared = (
            self._memory[id(source.traced)]
            for source in made_of
            if place and source.values[0].untyped_storage().data_ptr() == place
        )
        memory = next(shared, None)
        key = id(known.traced)
        self._memory[key] = next(self._memories) if memory is None else memory
        self._known[key], self._versions[key] = known, _version(known.traced)

    def _in_memory_of(self, tensors: list[Any]) -> set[int]:
        """Where tensors are, and values that are known, unless those are not there."""
        found = {self._memory[id(t)] for t in tensors if id(t) in self._memory}
        bases = {id(_base(tensor)) for tensor in tensors if isinstance(tensor, Tensor)}
        return found | {
            self._memory[key]
            for key, known in self._known.items()
            if bases and id(_base(known.traced)) in bases
        }

    def _lose(self, goals: list[Any]) -> None:
        """Know nothing of what is in the memory that was written to."""
        places = self._in_memory_of(goals)
        self._lost |= places
        gone = (known for key, known in self._known.items() if self._memory[key] in places)
        self._written |= {name for known in gone for name in known.names}

    def _wrote(self, goals: list[Any]) -> None:
        """What was written is known there too: values of one memory were written to at once."""
        places = self._in_memory_of(goals)
        for key, known in self._known.items() if places else ():
            if self._memory[key] in places:
                self._versions[key] = _version(known.traced)


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


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")


def _base(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base


def _version(tensor: Tensor) -> int:
    """How often the memory of a tensor was written to."""
    return 0 if tensor.is_inference() else tensor._version


def _empty(like: Tensor, scenario: Scenario) -> Tensor:
    """A value of which no more is read than its shape and its kind."""
    shape = [sized(size, scenario) for size in like.shape]
    return torch.empty(shape, dtype=like.dtype, device=like.device)
