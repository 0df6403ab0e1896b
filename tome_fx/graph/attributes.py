"""Tensors at dotted paths of a module tree."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tome_fx.graph.places import Held


def set_attribute(root: nn.Module, path: str, value: Tensor, persistent: bool = True) -> None:
    """Register a tensor at a dotted path, making plain modules on the way."""
    *parents, leaf = path.split(".")
    for name in parents:
        child = root._modules.get(name)
        if child is None:
            child = Held()
            child.training = root.training
            root.add_module(name, child)
        root = child
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent=persistent)


def tell_kind(target: nn.Module, model: nn.Module) -> None:
    """Give ``target`` the properties ``dtype`` and ``device`` where ``model`` has them.

    What a tower is a part of asks it for them, as transformers' models do. They are those of the
    parameters at any time. The class of a graph module is its own.
    """
    for name, read in (("dtype", _dtype), ("device", _device)):
        theirs = isinstance(inspect.getattr_static(model, name, None), property)
        if theirs and isinstance(target, GraphModule) and not hasattr(target, name):
            setattr(type(target), name, property(read))


def _dtype(module: nn.Module) -> torch.dtype:
    values = [*module.parameters(), *module.buffers()]
    return next((v.dtype for v in values if v.is_floating_point()), torch.get_default_dtype())


def _device(module: nn.Module) -> torch.device:
    values = [*module.parameters(), *module.buffers()]
    return next((value.device for value in values), torch.get_default_device())
