"""A module's structure, copied; all that it holds, shared."""

from __future__ import annotations

import copy

from torch import nn


def shell(module: nn.Module) -> nn.Module:
    """Modules with tables of their own for parameters, buffers, children and hooks."""
    return _shell(module, {})


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what stands at ``path``, and its name there."""
    *parents, leaf = path.split(".")
    for name in parents:
        root = root._modules[name]  # type: ignore[assignment]
    return root, leaf


def _shell(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in seen:
        new = module.__class__.__new__(module.__class__)
        seen[id(module)] = new
        new.__dict__.update(module.__dict__)
        for name, table in module.__dict__.items():
            if isinstance(table, (dict, list, set)):  # a cache of its own among them
                new.__dict__[name] = copy.copy(table)
        for name, child in module._modules.items():
            new._modules[name] = None if child is None else _shell(child, seen)
    return seen[id(module)]
