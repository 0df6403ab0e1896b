"""Where in the user's own code an exception comes from."""

from __future__ import annotations

import os
import traceback

import torch

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH = os.path.dirname(torch.__file__) + os.sep
_NOT_THEIRS = (TORCH, _OURS + os.sep)


def blame(error: BaseException) -> str:
    """The error's first lines, and the innermost line of code that is not torch's or ours."""
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


def _is_theirs(filename: str) -> bool:
    path = os.path.abspath(filename)
    generated = filename.startswith("<")
    return not generated and not path.startswith(_NOT_THEIRS) and os.path.exists(path)
