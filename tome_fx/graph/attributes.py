"""Tensors at dotted paths of a module tree."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tome_fx.errors import ConfigError, ToMeWarning


class Held(nn.Module):
    """A place in a module tree for tensors that a program reads; it is never called itself.

    What has an effect on a module that is called, and none here, is refused or warned of.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # FSDP gathers weights when the module that it is told of is called. It makes a subclass.
        if any(base.__name__ == "FSDPModule" for base in cls.__bases__):
            raise ConfigError(
                "The parts of a transformed module are not called, so they cannot be sharded one "
                "by one: no call would gather their weights. Shard it as a whole, "
                "fully_shard(result)."
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse modules in the place of its own."""
        refuse_module(self, name, value)
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Held:
        """Only the result as a whole has modes."""
        if mode != self.training:
            warnings.warn(
                f"{'train' if mode else 'eval'}() of a part of a transformed module changes "
                "nothing: its parts are not called. Call it on the whole; to freeze a part, set "
                "the modes of the model and transform it then.",
                ToMeWarning,
                stacklevel=2 if mode else 3,  # eval() calls train()
            )
        return self

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """No call will meet it."""
        return _unheeded(super().register_forward_hook(*args, **kwargs))

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """No call will meet it, nor a weight that it would make anew."""
        made = [name for name, value in vars(self).items() if isinstance(value, Tensor)]
        if made:
            del vars(self)[made[0]]  # pruning then puts the parameter back
            raise ConfigError(
                f"{made[0]} is no parameter any more, and a hook would make it anew before each "
                "call, as pruning and torch.nn.utils.weight_norm do. The parts of a transformed "
                "module are not called: do it to the model, then transform that."
            )
        return _unheeded(super().register_forward_pre_hook(*args, **kwargs))

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """No call will meet it."""
        return _unheeded(super().register_full_backward_hook(*args, **kwargs))

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """No call will meet it."""
        return _unheeded(super().register_full_backward_pre_hook(*args, **kwargs))


def refuse_module(module: nn.Module, name: str, value: Any) -> None:
    """Raise ConfigError where a module would take the place of one that holds weights."""
    if isinstance(value, nn.Module) and isinstance(module._modules.get(name), Held):
        raise ConfigError(
            f"{type(value).__name__} cannot take the place of {name}: it would not be called. A "
            f"transformed module computes what the model did, with the weights that {name} holds. "
            "Change the model, then transform that."
        )


def switch(module: nn.Module, mode: bool) -> None:
    """``module.train(mode)`` of the parts of a whole, which may be told so."""
    for child in module.children():
        if isinstance(child, Held):
            child.training = mode
            switch(child, mode)
        else:
            child.train(mode)


def _unheeded(handle: Any) -> Any:
    warnings.warn(
        "A hook on a part of a transformed module never runs: its parts hold weights and are not "
        "called. Put it on the whole, or look at the model.",
        ToMeWarning,
        stacklevel=3,
    )
    return handle


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
            child.training = root.training
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
    new.training = old.training
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
