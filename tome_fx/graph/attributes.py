"""Tensors at dotted paths of a module tree."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tome_fx.errors import ConfigError


class Held(nn.Module):
    """A place in a module tree for tensors that a program reads; it is never called itself."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # FSDP gathers weights when the module that it is told of is called. It makes a subclass.
        if any(base.__name__ == "FSDPModule" for base in cls.__bases__):
            raise ConfigError(
                "The parts of a transformed module are not called, so they cannot be sharded one "
                "by one: no call would gather their weights. Shard it as a whole, "
                "fully_shard(result)."
            )


class HeldLinear(Held, nn.Linear):
    """The same for the weights of an ``nn.Linear``, which tools of quantisation look for.

    Finding none, they would do nothing without a word.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what only ``nn.Linear`` would multiply by: the program has products of its own."""
        old = self.__dict__.get("_parameters", {}).get(name)
        if old is not None and _is_coded(value) and type(value) is not type(old):
            raise ConfigError(
                f"{type(value).__name__} cannot replace a weight of a transformed module. "
                "Quantise the model first, then transform it."
            )
        super().__setattr__(name, value)


def _is_coded(value: Any) -> bool:
    """Is it a tensor made of other tensors, and not one that is spread over processes?"""
    return isinstance(value, Tensor) and (
        hasattr(value, "__tensor_flatten__") and not hasattr(value, "full_tensor")
    )


def set_attribute(root: nn.Module, path: str, value: Tensor, persistent: bool = True) -> None:
    """Register a tensor at a dotted path, making plain modules on the way."""
    *parents, leaf = path.split(".")
    for name in parents:
        child = root._modules.get(name)
        if child is None:
            child = Held()
            child.train(root.training)
            root.add_module(name, child)
        root = child
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent=persistent)


def hold_linear(root: nn.Module, path: str, like: nn.Linear) -> None:
    """Make the place for a linear's tensors, once everything above it has its place."""
    *parents, leaf = path.split(".")
    for name in parents:
        root = root._modules[name]  # type: ignore[assignment]
    old = root._modules[leaf]
    assert old is not None
    new = HeldLinear(like.in_features, like.out_features)
    new.train(old.training)
    for table in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        setattr(new, table, getattr(old, table))
    if "bias" not in new._buffers:
        new._parameters.setdefault("bias", None)  # as a linear without one has it
    root._modules[leaf] = new


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
