"""Tensors at dotted paths of a module tree."""

from __future__ import annotations

from torch import Tensor, nn


def set_attribute(root: nn.Module, path: str, value: Tensor, persistent: bool = True) -> None:
    """Register a tensor at a dotted path, making plain modules on the way."""
    *parents, leaf = path.split(".")
    for name in parents:
        child = root._modules.get(name)
        if child is None:
            child = nn.Module()
            child.train(root.training)
            root.add_module(name, child)
        root = child
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent=persistent)
