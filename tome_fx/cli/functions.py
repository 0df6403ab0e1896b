"""A function that a flag names: ``FILE.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tome_fx.cli.failure import CliError, one_line


def load_function(text: str, flag: str) -> Any:
    """Return what ``text`` names. The file or module is run for it.

    Raises CliError where there is none, or where its code fails.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise CliError(f"{flag} {text}: a file and a function of it, as in pairs.py:at_random")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _imported(where)
    except Exception as error:
        raise CliError(f"{flag} {text}: {type(error).__name__}: {one_line(error)}") from error
    if not hasattr(module, name):
        raise CliError(f"{flag} {text}: {where} holds no {name}")
    return getattr(module, name)


def _imported(name: str) -> ModuleType:
    # A script that is installed has not the folder that it is called in on its path.
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _from_file(path: Path) -> ModuleType:
    # A name of its own: a file may be called like a module that something imports.
    spec = importlib.util.spec_from_file_location(f"matching_in_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError("no file of Python")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as `python FILE.py` has it
    sys.modules[spec.name] = module  # where its classes look for it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module
