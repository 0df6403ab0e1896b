"""Writes to a model's weights in a run of it, undone: an average of weights that forward keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class WritesUndone(TorchFunctionMode):
    """Within, what Python's calls write to some tensors is put back at the end.

    What a tensor held is copied when it is first written to, by any view of it: large weights that
    nobody writes to are not copied. One that is given other memory (``w.data = ...``) has its own
    again.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._own = [(tensor, tensor.data) for tensor in tensors if _has_memory(tensor)]
        self._places = {_place(data): data.untyped_storage() for _, data in self._own}
        self._before: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in pytree.tree_leaves(_written(func, args, kwargs or {})):
            place = _place(value) if isinstance(value, Tensor) and _has_memory(value) else 0
            if place in self._places and place not in self._before:
                self._before[place] = _copy(self._places[place])
        return func(*args, **(kwargs or {}))

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for place, value in self._before.items():
            self._places[place].copy_(value)
        for tensor, data in self._own:
            if _place(tensor) != _place(data):
                tensor.data = data


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a call may write to."""
    name = str(getattr(func, "__name__", ""))
    ends = name.endswith("_") and not name.endswith("__")
    schema = getattr(func, "_schema", None)
    if schema is not None and schema.is_mutable:
        return args, kwargs
    return [kwargs.get("out"), args[:1] if ends or name in ("__setitem__", "set_") else ()]


def _has_memory(tensor: Tensor) -> bool:
    """Is it a tensor of numbers, and nothing that only acts as one?"""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return plain and not tensor.is_meta


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # what a function under vmap gets shows no memory
        return 0


def _copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copied: torch.UntypedStorage = storage.clone()  # type: ignore[no-untyped-call]
    return copied
