"""What a command says when it cannot go on: one line."""

from __future__ import annotations

INTERRUPTED = 130
INSTALL = 'pip install "tome_fx[cli]"'

# Top-level modules of the extra `cli`: one of them missing is a matter of installation.
EXTRAS = frozenset(
    {"typer", "rich", "numpy", "PIL", "skimage", "timm", "torchvision", "safetensors"}
    | {"huggingface_hub"}
)


class CliError(Exception):
    """Bad input on the command line: its text is the one line that the user reads."""


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Return the text of an error with every run of white space as one blank, cut at `limit`."""
    text = " ".join(str(error).split())
    if not text:
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Return the line about a missing extra, or None where the missing module is another one."""
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return f"the command line needs {name}: {INSTALL}"
