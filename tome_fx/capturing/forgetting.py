"""Modes of fake tensors that are let go of, with what they made fakes of and what was traced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch._dynamo import functional_export
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def modes_forgotten() -> Iterator[None]:
    """Within, what this thread makes of such modes knows nothing any more on leaving.

    A mode holds a weak reference to each tensor that it made a fake of, and a weight to which one
    is held cannot be swapped (``torch.utils.swap_tensors``), as ``to`` and ``load_state_dict`` do
    with quantised ones. Its symbolic sizes hold the fakes of a program's inputs, which hold the
    sizes by C++, where no collector sees the circle: ``torch.export`` of a dynamic batch leaves all
    of it behind for good. What is made of a program later asks its values alone. Where export reads
    code, Dynamo leaves the graph among the globals of a module.
    """
    made: list[FakeTensorMode] = []
    graphs = set(_graphs())
    thread, begin = threading.get_ident(), FakeTensorMode.__init__

    def begun(self: FakeTensorMode, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if threading.get_ident() == thread:
            made.append(self)

    with patch.object(FakeTensorMode, "__init__", begun):
        try:
            yield
        finally:
            for mode in made:
                _forget(mode)
            for name in set(_graphs()) - graphs:
                vars(functional_export)[name] = None  # Dynamo may take the name away itself


def _forget(mode: FakeTensorMode) -> None:
    describer = mode.fake_tensor_converter.meta_converter.describer
    describer.lookup_tensor.clear()
    describer.lookup_storage.clear()
    if mode.shape_env is not None and mode.shape_env.tracked_fakes is not None:
        mode.shape_env.tracked_fakes.clear()


def _graphs() -> list[str]:
    return [name for name in vars(functional_export) if name.startswith("__compiled_fn_")]
