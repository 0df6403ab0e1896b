"""The commands, and how their noise and their usage errors are kept to a line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from tome_fx.cli.bench import bench
from tome_fx.cli.demo import demo
from tome_fx.cli.explain import explain
from tome_fx.cli.export import export
from tome_fx.cli.failure import INTERRUPTED, CliError, one_line
from tome_fx.cli.options import with_backend
from tome_fx.cli.profile import profile
from tome_fx.cli.tune import tune
from tome_fx.cli.validate import validate
from tome_fx.cli.vis import vis
from tome_fx.cli.wording import as_flags

NAME = "tome-fx"
_OF_OPTIONS = ("Merging ", "Nothing merges")

app = typer.Typer(
    name=NAME,
    help="Token Merging for any Vision Transformer, as a graph compiler pass for PyTorch.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, explain, bench, profile, tune, validate, export, vis):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tome-fx {metadata.version('tome_fx')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Token Merging for any Vision Transformer, as a graph compiler pass for PyTorch."""


def call(args: Sequence[str]) -> int:
    """Run a command line. Usage errors become CliError, for one line instead of a box."""
    try:
        code = app(with_backend(args) or ["--help"], prog_name=NAME, standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        line = _usage_line(error)
        if line is None:
            raise
        raise CliError(line) from None
    if code == INTERRUPTED:  # newer versions of typer make this of a KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _usage_line(error: Exception) -> str | None:
    """Return the line of a usage error; known by its shape, for typer brings its own click."""
    message = getattr(error, "format_message", None)
    if message is None or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    where = context.command_path if context else NAME
    return f"{one_line(message())} ({where} --help)"


def calm(debug: bool) -> None:
    """Keep the libraries below from talking on stderr; our own warnings take one line each."""
    if debug:
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for name in ("timm", "torch", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("default")
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
) -> None:
    ours = f"{os.sep}tome_fx{os.sep}" in filename or category.__module__.startswith("tome_fx")
    if ours:
        text = str(message)
        if text.startswith(_OF_OPTIONS):  # others may quote a model
            text = as_flags(text)
        print(f"{NAME}: warning: {one_line(text)}", file=sys.stderr)
