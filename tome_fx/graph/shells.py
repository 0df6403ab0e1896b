"""A module's structure, copied; all that it holds, shared."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def shell(module: nn.Module, made: dict[int, Any] | None = None) -> nn.Module:
    """Modules with tables of their own for parameters, buffers, children and hooks.

    Args:
        made: is told what stands for what, by its ``id``.
    """
    return _shell(module, {} if made is None else made)


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what stands at ``path``, and its name there."""
    *parents, leaf = path.split(".")
    for name in parents:
        root = root._modules[name]  # type: ignore[assignment]
    return root, leaf


def _shell(module: nn.Module, seen: dict[int, Any]) -> nn.Module:
    if id(module) not in seen:
        new = module.__class__.__new__(module.__class__)
        seen[id(module)] = new
        new.__dict__.update(module.__dict__)
        for name, table in module.__dict__.items():
            if isinstance(table, (dict, list, set)):  # a cache of its own among them
                new.__dict__[name] = seen[id(table)] = copy.copy(table)
        for name, child in module._modules.items():
            new._modules[name] = None if child is None else _shell(child, seen)
    found: nn.Module = seen[id(module)]
    return found
