"""The tensors of a model or of an exported program, by their paths."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def tensors_of(
    model: nn.Module | torch.export.ExportedProgram,
) -> Iterator[tuple[str, Tensor, bool]]:
    """Every parameter and buffer as ``(path, tensor, persistent)``, shared ones at each path."""
    if not isinstance(model, nn.Module):
        held = model.module(check_guards=False)
        yield from tensors_of(held)
        return
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield dot + name, parameter, True
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield dot + name, buffer, name not in module._non_persistent_buffers_set


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested values."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def held_at(root: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer at ``path``; None if there is none."""
    owner: nn.Module | None = root
    *parents, leaf = path.split(".")
    for name in parents:
        owner = None if owner is None else owner._modules.get(name)
    return None if owner is None else owner._parameters.get(leaf, owner._buffers.get(leaf))


def with_tensors(
    program: torch.export.ExportedProgram, target: nn.Module
) -> torch.export.ExportedProgram:
    """An exported program with the tensors that ``target`` has now, cast or loaded since."""

    def now(table: Mapping[str, Any]) -> dict[str, Any]:
        found = ((path, held_at(target, path), value) for path, value in table.items())
        return {path: value if held is None else held for path, held, value in found}

    result = copy.copy(program)
    result._state_dict, result._constants = now(program.state_dict), now(program.constants)
    return result


def shape_of(tensor: Tensor) -> Tensor:
    """The like of ``tensor`` without values, of whatever class that is."""
    if tensor.is_meta:
        return tensor
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
