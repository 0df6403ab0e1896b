"""A copy of a model's structure that shares its tensors, to trace or run in its place."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tome_fx.graph.shells import shell


def structure_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares every parameter and buffer.

    Where an attribute cannot be copied (a lock, a value with a gradient), the modules are copied
    one by one and share their plain attributes.
    """
    shared = [*model.parameters(), *model.buffers()]
    memo = {id(tensor): tensor for tensor in shared}
    try:
        result = copy.deepcopy(model, memo)
    except Exception:
        result = shell(model)
    for module in result.modules():
        # They have no place in a program, and would wrap every value of it.
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return result


def uncompiled(model: nn.Module) -> nn.Module:
    """``model`` itself, whose modules run as they are where ``torch.compile`` wraps them."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, torch._dynamo.eval_frame.OptimizedModule):
                module._modules[name] = child._orig_mod
    return model
