"""Places for the weights of a model in a result, as whoever looks for them expects to find them.

Optimizers leave norms out of weight decay, tools freeze batch norms, initialise or quantise
linears, and take blocks by number: all by walking through the modules and asking what each one is.
So a part is what it was in the model, as far as torch itself has a class for it. Finding none of a
class, they would do nothing without a word.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tome_fx.errors import ConfigError, warn
from tome_fx.graph.insides import QUANTISE, refuse_other_kind
from tome_fx.graph.numbers import UNREAD, is_same, numbers_of, plain_tensors

# What is asked for. Others of torch's classes have code that needs more than tensors and numbers.
_KINDS = (
    nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Embedding, _NormBase, _ConvNd,
)  # fmt: skip
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Held(nn.Module):
    """A place in a module tree for tensors that a program reads; it is never called itself.

    What has an effect on a module that is called, and none here, is refused or warned of.
    """

    _tome_fx_base: type[nn.Module] = nn.Module
    _tome_fx_told: Mapping[str, Any] = {}
    _tome_fx_unread: Collection[str] = ()
    _tome_fx_is_torchs: bool = False

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
        """Refuse what the program would not look at: it has modules and numbers of its own."""
        refuse_change(self, name, value)
        if name == "qconfig":
            raise ConfigError(QUANTISE.format("torch.ao.quantization"))
        if isinstance(value, Tensor) and name in self._tome_fx_unread:
            raise ConfigError(UNREAD.format(name))
        told = self._tome_fx_told.get(name, value)
        if not is_same(told, value):
            raise ConfigError(
                f"{name}={value!r} would change nothing: a transformed module computes with "
                f"{name}={told!r}, as the model did. Change the model, then transform "
                "that."
            )
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Refuse modules in the place of its own."""
        refuse_change(self, name, module)
        super().add_module(name, module)

    def __delattr__(self, name: str) -> None:
        """Refuse what the program could not run without."""
        refuse_deletion(self, name)
        super().__delattr__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is made when it is asked for."""
        if type(self) is not _class_of(self._tome_fx_base):
            return tuple(object.__reduce_ex__(self, 2))  # a parametrization says what it thinks
        return _blank, (self._tome_fx_base,), self.__dict__.copy()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's own class does, if it is of that: heads and norms are called by themselves."""
        if self._tome_fx_is_torchs:
            return self._tome_fx_base.forward(self, *args, **kwargs)
        raise ConfigError(
            f"This part ({type(self).__name__}) of a transformed module cannot be called. For it, "
            "or a method of the model, transform a module whose forward calls these."
        )

    def train(self, mode: bool = True) -> Held:
        """Only the result as a whole has modes."""
        if mode != self.training:
            warn(
                f"{'train' if mode else 'eval'}() of a part of a transformed module changes "
                "nothing: its parts are not called. Call it on the whole; to freeze a part, set "
                "the modes of the model and transform it then.",
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


def refuse_change(module: nn.Module, name: str, value: Any) -> None:
    """Raise ConfigError where the program would lose a tensor, or a module that holds some."""
    held = module._modules.get(name)
    tensors = module._parameters.get(name, module._buffers.get(name))
    if value is None and (tensors is not None or isinstance(held, Held)):
        raise ConfigError(
            f"{name} cannot be None: a transformed module computes what the model did, which needs "
            "it. Change the model, then transform that."
        )
    if isinstance(value, Tensor) and isinstance(tensors, Tensor):
        refuse_other_kind(name, tensors, value)
    if isinstance(value, nn.Module) and isinstance(held, Held) and value is not held:
        raise ConfigError(
            f"{type(value).__name__} cannot take the place of {name}: it would not be called. A "
            f"transformed module computes what the model did, with the weights that {name} holds. "
            "Change the model, then transform that."
        )


def refuse_deletion(module: nn.Module, name: str) -> None:
    """Raise ConfigError where a module that holds weights would be gone.

    Tensors may go: tools that put others in their place take them away first.
    """
    if isinstance(module._modules.get(name), Held):
        _refuse_change()


def switch(module: nn.Module, mode: bool) -> None:
    """``module.train(mode)`` of the parts of a whole, which may be told so."""
    for child in module.children():
        if isinstance(child, Held):
            child.training = mode
            switch(child, mode)
        else:
            child.train(mode)


def _unheeded(handle: Any) -> Any:
    warn(
        "A hook on a part of a transformed module never runs: its parts hold weights and are not "
        "called. Put it on the whole, or look at the model.",
    )
    return handle


class _Container:
    """What is more to what holds others: it keeps those that it has, in their order."""

    def __getitem__(self, index: Any) -> Any:
        """A part, or some of them in a plain container."""
        if not isinstance(index, slice):
            return super().__getitem__(index)  # type: ignore[misc]
        names = list(self._modules)[index]  # type: ignore[attr-defined]
        chosen = OrderedDict((name, self._modules[name]) for name in names)  # type: ignore[attr-defined]
        base = self._tome_fx_base  # type: ignore[attr-defined]
        return base(chosen) if issubclass(base, nn.Sequential) else base(chosen.values())

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Refuse what is new."""
        if name not in self._modules:  # type: ignore[attr-defined]
            _refuse_change()
        super().add_module(name, module)  # type: ignore[misc]

    def insert(self, *args: Any) -> Any:
        """Refuse it."""
        _refuse_change()

    def __delitem__(self, index: Any) -> None:
        """Refuse it."""
        _refuse_change()

    def clear(self) -> None:
        """Refuse it."""
        _refuse_change()


def _refuse_change() -> NoReturn:
    raise ConfigError(
        "A transformed module computes what the model did, with the parts that this holds: none "
        "is added and none is taken out. Change the model, then transform that."
    )


def hold(root: nn.Module, path: str, like: nn.Module, but: Collection[str] = ()) -> None:
    """Let the place at ``path`` say what ``like`` says: numbers, and its class if that is asked.

    So ``patch_embed.grid_size`` is there to be read. Once everything has its place; what has no
    tensor below it has none. Numbers in ``but`` are those of the whole alone.
    """
    base = _base_of(like)
    *parents, leaf = path.split(".")
    for name in parents:
        child = root._modules.get(name)
        if child is None:
            return
        root = child
    old, told = root._modules.get(leaf), numbers_of(like, but)
    if not isinstance(old, Held):
        return
    vars(old)["_tome_fx_unread"] = plain_tensors(like)
    counted = base is not None and issubclass(base, _CONTAINERS)
    if base is None or (counted and list(like._modules) != list(old._modules)):
        free = {name: value for name, value in told.items() if not hasattr(old, name)}
        vars(old).update({**free, "_tome_fx_told": free})
        return  # a container with others would count them otherwise
    new = _blank(base)
    vars(new).update({**told, **vars(old), "_tome_fx_told": told})
    vars(new)["_tome_fx_is_torchs"] = issubclass(base, _KINDS) and _is_as_torch_has_it(like, base)
    for table in ("_parameters", "_buffers"):
        for name, tensor in getattr(like, table).items():
            if tensor is None and not hasattr(new, name):
                getattr(new, table)[name] = None  # as a linear without a bias has it
    root._modules[leaf] = new


def _is_as_torch_has_it(module: nn.Module, base: type[nn.Module]) -> bool:
    """Does it compute what its class does, with nothing but tensors and numbers?"""
    padded = getattr(module, "padding_mode", "zeros") != "zeros"
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is base and not padded and not hooked


def _base_of(module: nn.Module) -> type[nn.Module] | None:
    """The nearest class of torch's own that is asked for.

    None where its weights are computed from others, as they may be of a class that is derived from
    linears.
    """
    derived = isinstance(module, nn.Linear) and type(module) is not nn.Linear
    if derived or isinstance(module, torch.jit.ScriptModule):
        return None
    tables = module._parameters.keys() | module._buffers.keys()
    if any(hasattr(type(module), n) or n in vars(module) for n in {"weight", "bias"} - tables):
        return None
    theirs = [c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.")]
    nearest = next(iter(theirs), nn.Module)
    return nearest if issubclass(nearest, (*_KINDS, *_CONTAINERS)) else None


def _class_of(base: type[nn.Module]) -> type[Held]:
    if base not in _CLASSES:
        more = [_Container] if issubclass(base, _CONTAINERS) else []
        body = {"__doc__": f"The place of the weights of a {base.__name__}.", "_tome_fx_base": base}
        _CLASSES[base] = type(f"Held{base.__name__}", (*more, Held, base), body)
    return _CLASSES[base]


_CLASSES: dict[type[nn.Module], type[Held]] = {nn.Module: Held}


def _blank(base: type[nn.Module]) -> Held:
    """A place with nothing in it."""
    new: Held = _class_of(base).__new__(_class_of(base))
    nn.Module.__init__(new)
    return new
