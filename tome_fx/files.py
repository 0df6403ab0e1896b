"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tome_fx.errors import ConfigError


def write_all(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files that belong together, each by a function of where: all of them or none.

    What stood there before stays until everything is written.

    Raises:
        ConfigError: one of them cannot be written, and why.
    """
    made = {path: path.with_name(f"{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, write in files.items():
            try:
                if path.is_dir():
                    raise IsADirectoryError(None, "it is a folder")
                write(made[path])
            except Exception as error:
                raise ConfigError(f"{path} cannot be written: {_reason(error)}.") from None
        for path, new in made.items():
            new.replace(path)
    finally:
        for new in made.values():
            new.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error)).partition("\n")[0].rstrip(".")
