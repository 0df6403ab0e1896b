"""What a model's code asks of the call that it is in, which no program holds: are gradients on?

    return self.head(x) if torch.is_grad_enabled() else self.head(x).softmax(-1)

A trace answers as its own call has it, and goes that way ever after.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tome_fx.capturing.blame import is_of_libraries

GRADIENTS, INFERENCE, AUTOCAST = "gradients", "inference mode", "autocast"
_FUNCTIONS = {
    "is_grad_enabled": GRADIENTS,
    "is_inference_mode_enabled": INFERENCE,
    "is_autocast_enabled": AUTOCAST,
    "is_autocast_cpu_enabled": AUTOCAST,
    "get_autocast_dtype": AUTOCAST,
    "get_autocast_gpu_dtype": AUTOCAST,
    "get_autocast_cpu_dtype": AUTOCAST,
}


class Questions:
    """What runs of a model were seen to ask.

    Attributes:
        lines: by what was asked (GRADIENTS, INFERENCE, AUTOCAST), where it was asked first:
            ``model.py:12``.
    """

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within, what this thread asks is noted, but for what torch and Python ask themselves."""
        thread = threading.get_ident()

        def note(kind: str, frame: FrameType) -> None:
            name = frame.f_code.co_filename
            if threading.get_ident() == thread and not is_of_libraries(name):
                self.lines.setdefault(kind, f"{os.path.basename(name)}:{frame.f_lineno}")

        with ExitStack() as stack:
            for name, kind in _FUNCTIONS.items():
                asked = _noting(getattr(torch, name), kind, note)
                stack.enter_context(patch.object(torch, name, asked))
            stack.enter_context(patch.object(torch.Tensor, "requires_grad", _requires_grad(note)))
            yield


def _noting(
    function: Callable[..., Any], kind: str, note: Callable[[str, FrameType], None]
) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():  # a part that is compiled has guards for it
            note(kind, sys._getframe(1))
        return function(*args, **kwargs)

    return asked


def _requires_grad(note: Callable[[str, FrameType], None]) -> property:
    """``x.requires_grad``, which says of what is computed whether gradients are on."""
    whole: Any = torch._C.TensorBase.requires_grad

    def read(self: Tensor) -> bool:
        if not isinstance(self, nn.Parameter):
            note(GRADIENTS, sys._getframe(1))
        return bool(whole.__get__(self))

    def write(self: Tensor, value: bool) -> None:
        whole.__set__(self, value)

    return property(read, write)


def line_of_mode(lines: Mapping[str, str], inference: bool) -> str:
    """Where the mode of a call was asked for, of `Questions.lines`: for inference mode alone?"""
    first, second = (INFERENCE, GRADIENTS) if inference else (GRADIENTS, INFERENCE)
    return lines.get(first) or lines[second]
