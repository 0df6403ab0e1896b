"""Training or evaluation, of each part of a model: told, copied along, and brought about."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule, Node

from tome_fx.capturing.closures import bring_along
from tome_fx.graph.calls import bind

_Model = TypeVar("_Model", bound=nn.Module | torch.export.ExportedProgram)


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Whether the parts are in training, by path; the model itself has the path ``""``."""
    return {path: part.training for path, part in model.named_modules(remove_duplicate=False)}


def set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    """Bring the parts to their modes, with all that a ``train`` of their own does."""
    for path, part in list(model.named_modules(remove_duplicate=False)):
        mode = modes.get(path, part.training)
        if part.training != mode and type(part).train is not nn.Module.train:
            part.train(mode)  # its own parts come behind it, and to modes of their own
        part.training = mode


def deep_copy(model: _Model, memo: dict[int, Any] | None = None) -> _Model:
    """``copy.deepcopy``, in the modes that the parts have, with functions of the copy's own.

    torchvision's extractors are made anew in training, with the graph of it.
    """
    made = {} if memo is None else memo
    result = copy.deepcopy(model, made)
    if isinstance(model, nn.Module) and isinstance(result, nn.Module):
        bring_along(result, made)
        set_modes(result, modes_of(model))
    return result


def holds_one_mode(model: nn.Module) -> bool:
    """Does it refuse to change its mode, as a module that ``torch.export`` made of a program?"""
    own = vars(model).get("train")
    return isinstance(own, MethodType) and own.__func__.__module__.startswith("torch.export")


def acts_in_training(program: nn.Module) -> bool:
    """Does it drop values, or normalise by its batch? So does a program of training."""
    nodes = program.graph.nodes if isinstance(program, GraphModule) else ()
    return any(map(_is_of_training, nodes))


def _is_of_training(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    call = bind(node)
    drops = call.get("train", call.get("training")) is True and call.get("p", 1.0) != 0
    return drops or bool(call.get("dropout_p"))
