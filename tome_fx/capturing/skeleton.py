"""A copy of a model's structure that shares its tensors, to trace or run in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tome_fx.capturing.closures import bring_along
from tome_fx.capturing.modes import deep_copy
from tome_fx.errors import ConfigError
from tome_fx.graph.shells import shell


def structure_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares every parameter and buffer.

    Where an attribute cannot be copied (a lock), the modules are copied one by one and share their
    plain attributes.
    """
    copied = _copied(model)
    result = _shared(model) if copied is None else copied
    for module in result.modules():
        # They have no place in a program, and would wrap every value of it.
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return result


def fresh(model: nn.Module) -> nn.Module:
    """Such a copy for one try, or the model itself where an attribute cannot be copied.

    What code keeps for later calls, a table in a dict say, would hold values of a try that failed.
    """
    copied = _copied(model)
    return model if copied is None else copied


def _shared(model: nn.Module) -> nn.Module:
    made: dict[int, Any] = {}
    result = shell(model, made)
    bring_along(result, made)
    return result


def _copied(model: nn.Module) -> nn.Module | None:
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        # A value of a call before, a pruned weight say, which its hook makes anew.
        made = {id(value): value.detach() for value in _plain(model) if not value.is_leaf}
        memo = {**made, **memo}
        return deep_copy(model, memo)
    except Exception:
        return None


def _plain(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that modules hold as attributes, or in a table or list."""
    for module in model.modules():
        for held in list(vars(module).values()):
            values = held.values() if isinstance(held, dict) else held
            row = values if isinstance(held, (dict, list, tuple)) else [held]
            yield from (value for value in row if isinstance(value, Tensor))


def uncompiled(model: nn.Module) -> nn.Module:
    """``model`` itself, whose modules run as they are where ``torch.compile`` wraps them."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, torch._dynamo.eval_frame.OptimizedModule):
                module._modules[name] = child._orig_mod
    return model


def unwrapped(model: Any) -> Any:
    """What a wrapper holds that changes nothing of what a call returns."""
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        return unwrapped(model._orig_mod)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    return model


def refuse_averaging(model: Any) -> None:
    """Raise ConfigError for a wrapper whose averages of gradients would be lost."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.parallel.DistributedDataParallel) or not inner.training:
        return
    if torch.distributed.get_world_size(inner.process_group) > 1:
        raise ConfigError(
            "DistributedDataParallel averages the gradients of its processes, which a transform of "
            "what it holds would not. Wrap the result: DistributedDataParallel(transform("
            "model.module)); for inference, call .eval() first."
        )
