"""Branches that a model's own buffers decide: ``if self.share[layer] > 0:``.

Export traces values without numbers, so such a line stops it, though no image has a part in it. For
a second try, what is made of small buffers alone is also computed for real on the way, and numbers
are read from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

# More numbers than that are data, which decide nothing.
_FEW = 64
_IN_PLACE = frozenset(
    {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__",
     "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
)  # fmt: skip
_READERS = frozenset({"__bool__", "__int__", "__float__", "__index__", "item", "tolist"})


@dataclass(frozen=True)
class _Known:
    """A traced value (kept, so that its id is its own), what it is, and the buffers it is of."""

    traced: Tensor
    value: Tensor
    names: frozenset[str]


class DecidedByBuffers(TorchFunctionMode):
    """Within, reading a number of what is made of small buffers of ``model`` gives that number.

    ``names`` are the buffers that were read so: what was captured is right for their values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._written: set[str] = set()
        self._values: dict[str, Tensor] = {}
        # Where each stands: every tensor of a trace is held against what is there, and a model with
        # batch norms has hundreds.
        self._places: list[tuple[dict[str, Tensor | None], str, str]] = []
        for name, buffer in model.named_buffers(remove_duplicate=False):
            owner, _, leaf = name.rpartition(".")
            held = model.get_submodule(owner)._buffers
            # A script makes a tensor anew at each look, so that none is found there.
            if buffer.numel() <= _FEW and not buffer.is_meta and isinstance(held, dict):
                self._values[name] = buffer.detach().clone()
                self._places.append((held, leaf, name))
        self._known: dict[int, _Known] = {}

    @property
    def serves(self) -> bool:
        """Is there any buffer that could decide?"""
        return bool(self._values)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [v for v in pytree.tree_leaves((args, named)) if isinstance(v, Tensor)]
        found = {id(tensor): self._find(tensor) for tensor in tensors}
        known = {place: seen for place, seen in found.items() if seen is not None}
        names = frozenset[str]().union(*(seen.names for seen in known.values()))
        goals = written_by(func, args, named)
        if goals:
            self._written |= {n for t in goals if (seen := known.get(id(t))) for n in seen.names}
        elif tensors and len(known) == len(found):
            return self._followed(func, known, names, args, named)
        return func(*args, **named)

    def _followed(
        self, func: Any, known: Mapping[int, _Known], names: frozenset[str], args: Any, kwargs: Any
    ) -> Any:
        """``func`` on known values: the number that it reads, or its result, known from here on."""

        def own(leaf: Any) -> Any:
            return known[id(leaf)].value if isinstance(leaf, Tensor) else leaf

        def real() -> Any:
            with _disable_current_modes(), torch.no_grad():
                own_args, own_kwargs = pytree.tree_map(own, (args, kwargs))
                return func(*own_args, **own_kwargs)

        if func.__name__ in _READERS:
            self.names |= names
            return real()
        result = func(*args, **kwargs)
        traced = pytree.tree_leaves(result)
        if any(isinstance(leaf, Tensor) for leaf in traced):
            for leaf, value in zip(traced, pytree.tree_leaves(real()), strict=True):
                if isinstance(value, Tensor) and value.numel() <= _FEW:
                    self._known[id(leaf)] = _Known(leaf, value, names)
        return result

    def _find(self, tensor: Tensor) -> _Known | None:
        """What is known of a tensor: nothing once what it is of was written to."""
        known = self._known.get(id(tensor))
        if known is None:
            own = next((n for held, leaf, n in self._places if held.get(leaf) is tensor), None)
            if own is None:
                return None
            known = _Known(tensor, self._values[own], frozenset({own}))
            self._known[id(tensor)] = known
        return None if known.names & self._written else known


def written_by(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """What a function or a method writes to, by its name: its first argument, or ``out``."""
    name = func if isinstance(func, str) else getattr(func, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    goals = [args[:1]] if own or name in _IN_PLACE or f"__{name}__" in _IN_PLACE else []
    return [g for g in pytree.tree_leaves([*goals, kwargs.get("out")]) if g is not None]
