"""What can go wrong, as types. Every message names what was found, where, and the next step."""

from __future__ import annotations

import sys
import warnings


class ToMeError(Exception):
    """Root of all errors that tome_fx raises on purpose."""


class ConfigError(ToMeError, ValueError):
    """An option has a value outside its range; the text names field, value and range."""


class MatchingError(ConfigError):
    """A function of the user that chooses what merges fails, or its answer is none."""


class InputError(ToMeError, ValueError):
    """The example inputs are missing, or the model itself rejects them."""


class CaptureError(ToMeError):
    """The model could not be turned into a graph; the text quotes the user's own line.

    Attributes:
        found: what stopped it.
        module: the path of the module that did, "" where that is not known.
        reads_values: whether that were values of a tensor, which are not known while it is traced.
    """

    def __init__(
        self, found: str, module: str = "", next_step: str = "", reads_values: bool = False
    ) -> None:
        super().__init__(f"{found} {next_step}".rstrip())
        self.found, self.module, self.reads_values = found, module, reads_values


class NoAttentionFoundError(ToMeError):
    """The graph holds no self-attention over tokens to merge at."""


class ShapeError(ToMeError, ValueError):
    """An input has another size than the captured one; the text names both."""


class ModeError(ToMeError, RuntimeError):
    """A call is of another mode than the captured one; the text says which, and what to do."""


class AlreadyTransformedError(ToMeError):
    """The model is itself the result of a transform; the text names its settings."""


class VerificationError(ToMeError):
    """A rewritten graph broke one of its invariants: a defect of tome_fx or of a custom rule."""


class ToMeWarning(UserWarning):
    """The result is right, but something about it may surprise; the text says what."""


def warn(text: str) -> None:
    """Warn of ``text`` at the line that called into the library, however deep that is.

    A warning is shown once for each line that it is given for: one of the library's own would tell
    the user nothing, and hide the next model's.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(str(frame.f_globals.get("__name__", ""))):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, ToMeWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    """Is it of this library, of torch, which calls it back, or code that is generated?"""
    return module.partition(".")[0] in ("tome_fx", "torch", "")
