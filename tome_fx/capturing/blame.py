"""Where in the user's own code an exception comes from."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any

import torch
from torch import nn

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH = os.path.dirname(torch.__file__) + os.sep
_NOT_THEIRS = (TORCH, _OURS + os.sep)
# Of Python itself; what is installed beside it is a user's.
_PYTHON = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)


def blame(error: BaseException) -> str:
    """The error's first lines, and the innermost line that is not of torch, of Python or ours."""
    text = str(error).strip().split("\n\n")[0] or type(error).__name__
    line = own_line(error)
    return f"{text} At {line}." if line else text


def own_line(error: BaseException) -> str:
    """``model.py:12: if x.sum() > 0:`` or an empty text."""
    seen: BaseException | None = error
    while seen is not None:
        frames = [f for f in traceback.extract_tb(seen.__traceback__) if _is_theirs(f.filename)]
        if frames:
            last = frames[-1]
            return f"{os.path.basename(last.filename)}:{last.lineno}: {(last.line or '').strip()}"
        seen = seen.__cause__ or seen.__context__
    return ""


def is_own_code(function: Any, module: nn.Module) -> bool:
    """Is ``function`` of the installed library that ``module`` is of, which knows of it?"""
    code = getattr(inspect.unwrap(function), "__code__", None)
    home = getattr(function, "__module__", None) or ""
    library = home.partition(".")[0]
    if home.startswith("torch.export."):
        return True  # the checks of the inputs that an exported program begins with
    same = library != "torch" and library == type(module).__module__.partition(".")[0]
    return same and code is not None and any(folder in code.co_filename for folder in _INSTALLED)


def is_of_libraries(filename: str) -> bool:
    """Is it a file of torch, of Python or ours? What is typed in has none."""
    path = os.path.abspath(filename)
    installed = any(folder in path for folder in _INSTALLED)
    return path.startswith(_NOT_THEIRS) or (path.startswith(_PYTHON) and not installed)


def _is_theirs(filename: str) -> bool:
    there = not filename.startswith("<") and os.path.exists(os.path.abspath(filename))
    return there and not is_of_libraries(filename)
