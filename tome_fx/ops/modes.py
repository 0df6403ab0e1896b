"""The check of how a program is called: with gradients, without, or in inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch.fx.node import has_side_effect

from tome_fx.errors import ModeError

Mode: TypeAlias = Literal["with gradients", "without gradients", "in inference mode"]
GRADED: Mode = "with gradients"
UNGRADED: Mode = "without gradients"
INFERENCE: Mode = "in inference mode"
_AS = {
    GRADED: "torch.enable_grad()",
    UNGRADED: "torch.no_grad()",
    INFERENCE: "torch.inference_mode()",
}


def mode_now() -> Mode:
    """The mode that a call made here would be in."""
    if torch.is_inference_mode_enabled():
        return INFERENCE
    return GRADED if torch.is_grad_enabled() else UNGRADED


@contextlib.contextmanager
def in_mode(mode: Mode) -> Iterator[None]:
    """Within, calls are in that mode."""
    # The class itself: within a capture ``torch.inference_mode`` is ``no_grad``.
    with torch._C._InferenceMode(mode == INFERENCE), torch.set_grad_enabled(mode == GRADED):
        yield


@has_side_effect
def check_mode(captured: Mode, unlike: tuple[Mode, ...], line: str) -> None:
    """Raise ``ModeError`` in a call of a mode in which the model computes something else.

    Args:
        captured: the mode that the program is of.
        unlike: those in which the model does something else.
        line: where its code asks for the mode, ``model.py:12``.
    """
    mode = mode_now()
    if mode in unlike:
        step = ""
        if mode != INFERENCE or UNGRADED in unlike:
            other = UNGRADED if mode == INFERENCE else mode
            step = f" For calls like this, transform the model again under {_AS[other]}."
        raise ModeError(
            f"This call is {mode}, and the model's own code, which asks for that ({line}), "
            f"computes something else then than {captured}, as it was captured. Call the result "
            f"under {_AS[captured]}.{step}"
        )


# What is asked of calls alone, not of who looks at the shapes of a program.
UNCALLED = (check_mode,)
