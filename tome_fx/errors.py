"""What can go wrong, as types. Every message names what was found, where, and the next step."""

from __future__ import annotations


class ToMeError(Exception):
    """Root of all errors that tome_fx raises on purpose."""


class ConfigError(ToMeError, ValueError):
    """An option has a value outside its range; the text names field, value and range."""


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


class AlreadyTransformedError(ToMeError):
    """The model is itself the result of a transform; the text names its settings."""


class VerificationError(ToMeError):
    """A rewritten graph broke one of its invariants: a defect of tome_fx or of a custom rule."""


class ToMeWarning(UserWarning):
    """The result is right, but something about it may surprise; the text says what."""
