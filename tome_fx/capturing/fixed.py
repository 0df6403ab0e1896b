"""Inputs of whole numbers that decide shapes: the grid of an image's patches, say.

    tower(patches, grid_thw=torch.tensor([[1, 24, 32]]))

Export traces values without numbers, so code that reads such a grid stops it. For a second try they
are constants, as if they were written into ``forward``, and the program is for these alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tome_fx.capturing.calling import inputs_of, other_forward
from tome_fx.capturing.examples import Example
from tome_fx.program import Program

# More numbers than that are data, which decide nothing.
_FEW = 1024
# Frames, rows and columns of an image, say. Words are more, and are data.
_WIDE = 4


def has_numbers(example: Example) -> bool:
    """Does the example hold inputs that could decide shapes?"""
    return any(_is_numbers(leaf, example) for leaf in example.leaves)


def fixed_inputs(program: Program, example: Example) -> Mapping[str, Any]:
    """The numbers that a program captured :func:`as_constants` is for, by input."""
    given = inputs_of(program.graph, example)
    return {n.name: value.tolist() for n, value in given if _is_numbers(value, example)}


@contextmanager
def as_constants(model: nn.Module, example: Example) -> Iterator[None]:
    """Within, ``forward`` works on constants in place of such inputs."""
    leaves, _ = pytree.tree_flatten_with_path((example.args, dict(example.kwargs)))
    known = {path: leaf for path, leaf in leaves if _is_numbers(leaf, example)}
    forward = model.forward

    @functools.wraps(forward)
    def reading_constants(*args: Any, **kwargs: Any) -> Any:
        def constant(path: Any, leaf: Any) -> Any:
            value = known.get(path)
            if value is None:
                return leaf
            return torch.tensor(value.tolist(), dtype=value.dtype, device=value.device)

        args, kwargs = pytree.tree_map_with_path(constant, (args, kwargs))
        return forward(*args, **kwargs)

    with other_forward(model, reading_constants):
        yield


def _is_numbers(value: Any, example: Example) -> bool:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return False
    short = value.dim() < 2 or (value.dim() == 2 and value.shape[1] <= _WIDE)
    held = value.is_meta or not 0 < value.numel() <= _FEW or value.dtype is torch.bool
    return short and not held and not example.has_rows(value)
