"""What a model's class has besides tensors and parts: methods, properties, plain attributes.

What a tower is a part of asks for them: an encoder for ``main_input_name``, a decoder for
``forward_with_filtered_kwargs``. A result has them too. A method runs on a view of the result: what
it calls is the program, what it reads is the result's, and what it would change is refused, for
the program would not look at it.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from tome_fx.errors import ConfigError, warn


def inherit(target: GraphModule, model: nn.Module) -> None:
    """Give ``target`` what the class of ``model`` has and it has not.

    The class of a graph module is its own; what stands on the module itself comes first.
    """
    own = type(target)
    tables = (target._parameters, target._buffers, target._modules)
    for name in _names(type(model)):
        if hasattr(own, name) or name in vars(target) or any(name in table for table in tables):
            continue
        setattr(own, name, _Inherited(name, type(model)))


def _names(cls: type) -> list[str]:
    classes = [one for one in cls.__mro__ if one not in nn.Module.__mro__]
    theirs = [one for one in classes if one.__module__ not in ("abc", "typing")]
    return [name for one in theirs for name in vars(one) if not name.startswith("__")]


class _Inherited:
    """A name of a model's class on that of a result: there too, what a module has comes first."""

    def __init__(self, name: str, cls: type) -> None:
        self.name, self.cls = name, cls
        self.static: Any = inspect.getattr_static(cls, name)
        coded = hasattr(type(self.static), "__get__")
        self.coded = coded and not isinstance(self.static, (staticmethod, classmethod))

    def __get__(self, target: Any, owner: type | None = None) -> Any:
        if target is None or not self.coded:
            return getattr(self.cls, self.name)
        if torch.compiler.is_compiling():  # Dynamo makes no view
            return self.static.__get__(target, type(target))
        view = _view(target, self.cls)
        if view is None:
            return self.static.__get__(target, type(target))
        found = getattr(view, self.name)
        return _told_of(found) if inspect.ismethod(found) else found


def _told_of(method: Any) -> Any:
    """A method that says where it may have changed nothing: what has no result has an effect."""

    @functools.wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            result = method(*args, **kwargs)
        except AttributeError as error:
            raise ConfigError(
                f"{method.__name__} of the model's class fails on a transformed module, whose "
                f"parts hold weights alone: {error}. Call it on the model, then transform that."
            ) from error
        if result is None:
            warn(
                f"{method.__name__} of the model's class has no result. Weights that it changed "
                "and files that it wrote are there; what else it set, in a config say, a "
                "transformed module does not look at. Change the model, then transform that."
            )
        return result

    return told


class Unlisted:
    """A first base of classes that are derived for a moment, of which no list needs to know."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class _View(Unlisted):
    """A result as its model's own methods see it."""

    __slots__ = ()

    def __init__(self) -> None:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.__tome_fx_result__(*args, **kwargs)

    def __getattribute__(self, name: str) -> Any:
        """What every module has is the result's: ``forward``, ``parameters``, ``train``."""
        if name in _OF_MODULES:
            return getattr(object.__getattribute__(self, "__tome_fx_result__"), name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse it."""
        raise ConfigError(
            f"{type(self).__name__} would set {name}, and a transformed module computes what the "
            "model did. Change the model, then transform that."
        )

    def __delattr__(self, name: str) -> None:
        """Refuse it."""
        self.__setattr__(name, None)


_OF_MODULES = {n for n in (*dir(nn.Module), *dir(nn.Module())) if not n.startswith("__")}


def _view(target: nn.Module, cls: type) -> Any:
    """The same attributes, parts and tensors, under the model's class; None if it allows none."""
    try:
        view: Any = object.__new__(_view_class(cls))
    except Exception:
        return None
    object.__setattr__(view, "__dict__", vars(target))
    object.__setattr__(view, "__tome_fx_result__", target)
    return view


@functools.lru_cache(maxsize=32)
def _view_class(cls: type) -> type:
    body = {"__slots__": ("__tome_fx_result__",), "__module__": cls.__module__}
    return types.new_class(cls.__name__, (_View, cls), {}, lambda own: own.update(body))
