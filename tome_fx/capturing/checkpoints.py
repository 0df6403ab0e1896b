"""Gradient checkpointing in a model's forward: noticed at capture, and traced as plain calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as checkpointing
from torch import nn

# What timm and transformers call the switch.
SWITCHES = ("grad_checkpointing", "gradient_checkpointing")


def asks_for_checkpoints(model: object) -> bool:
    """Is the switch of a known library on? A trace may take a way of its own around the calls."""
    return isinstance(model, nn.Module) and any(
        getattr(module, name, False) is True for module in model.modules() for name in SWITCHES
    )


@contextmanager
def checkpoints_noticed() -> Iterator[list[str]]:
    """Within, this thread's checkpointed calls are listed, and traced as if they were plain.

    The reentrant kind runs its function without gradients and computes them by itself: traced as
    it is, the program would have lost them. Other threads may be training: theirs stay as they are.
    """
    seen: list[str] = []
    thread = threading.get_ident()
    reentrant: Any = checkpointing.CheckpointFunction
    # The one step that the other kind takes whether gradients are on or off.
    device_type: Any = checkpointing._infer_device_type

    class Plain:
        """Stands in for ``CheckpointFunction``, which is called by ``apply`` alone."""

        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            if threading.get_ident() != thread:
                return reentrant.apply(function, preserve, *args)
            seen.append("reentrant")
            return function(*args)

    def noticed(*args: Any) -> Any:
        if threading.get_ident() == thread:
            seen.append("plain")
        return device_type(*args)

    checkpointing.CheckpointFunction = Plain  # type: ignore[misc, assignment]
    checkpointing._infer_device_type = noticed
    try:
        yield seen
    finally:
        checkpointing.CheckpointFunction = reentrant  # type: ignore[misc]
        checkpointing._infer_device_type = device_type
