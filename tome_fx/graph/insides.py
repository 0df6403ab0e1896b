"""Tensors that are made of others, as weights of torchao are: what they hold, and of what kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tome_fx.errors import ConfigError

Way = tuple[str, ...]

# Of what a class keeps, what its tensors tell anew wherever they are.
_PLACE = re.compile(r"device=device\([^)]*\)|requires_grad=\w+|storage_offset=\d+| at 0x[0-9a-f]+")
QUANTISE = "{} cannot be a weight here. Quantise the model first, by torchao, then transform it."


def is_made_of_others(value: Any) -> bool:
    """Is it a tensor that holds its numbers in other tensors?"""
    return bool(is_traceable_wrapper_subclass(value))


def ways(value: Any) -> Iterator[Way]:
    """The attributes that lead to each plain tensor of ``value``, in the order of torch.

    A plain one, and what is no tensor, is its own: the empty way.
    """
    if not is_made_of_others(value):
        yield ()
        return
    for name in value.__tensor_flatten__()[0]:
        for rest in ways(getattr(value, name)):
            yield (name, *rest)


def at(value: Any, way: Way) -> Any:
    """What a way leads to."""
    for name in way:
        value = getattr(value, name)
    return value


def parts(value: Tensor) -> list[Tensor]:
    """The plain tensors of ``value``."""
    return [at(value, way) for way in ways(value)]


def built(like: Any, left: Iterator[Any]) -> Any:
    """A tensor as ``like``, of the next plain ones."""
    if not is_made_of_others(like):
        return next(left)
    names, context = like.__tensor_flatten__()
    inside = {name: built(getattr(like, name), left) for name in names}
    return type(like).__tensor_unflatten__(inside, context, like.size(), like.stride())


def kind_of(value: Tensor) -> str:
    """What decides how a tensor is computed with, in words; none for a plain one.

    Its class, what that keeps beside the tensors, and the shapes of these, which tell what a scale
    is for; not where it is, and whether it asks for gradients.
    """
    if not is_made_of_others(value):
        return ""
    names, kept = value.__tensor_flatten__()  # type: ignore[attr-defined]
    inside = [(name, getattr(value, name)) for name in names]
    shapes = ", ".join(f"{n} {tuple(v.shape)} {v.dtype}{kind_of(v)}" for n, v in inside)
    return f" {type(value).__name__} of {_PLACE.sub('', repr(kept))} with {shapes}"


def refuse_other_kind(name: str, old: Tensor, new: Tensor) -> None:
    """Raise ConfigError where a program would not compute with a tensor as the model would.

    It has the ops that torch, or torchao, has for the kind of tensor that it was captured with.
    """
    # One that is spread over processes holds a share of either.
    if any(hasattr(value, "full_tensor") for value in (old, new)) or kind_of(old) == kind_of(new):
        return
    if not is_made_of_others(old):
        raise ConfigError(QUANTISE.format(type(new).__name__))
    raise ConfigError(
        f"{name} was captured as{kind_of(old)}. A model computes in another way with"
        f"{kind_of(new) or ' a plain tensor'}. Quantise the model so, then transform it."
    )
