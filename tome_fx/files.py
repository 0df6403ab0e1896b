"""Files that are whole: the old one stays until the new one is written."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tome_fx.errors import ConfigError


def file_path(path: Any, what: str) -> Path:
    """``path`` as a path; ``what`` is written there or read.

    Raises:
        TypeError: it is no path.
        ConfigError: it names no file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{what} has a path, not {type(path).__name__}.")
    if not Path(path).name or "\0" in str(path):
        raise ConfigError(f"{str(path)!r} names no file: give a name such as vit.json.")
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a new file to write, which takes the place of ``path`` in the end.

    Whoever ends the process at any time finds the old file or the new one. A link stays one, and
    the file its mode; what is no file, a pipe say, is written itself.

    Raises:
        OSError: with the name of ``path``, where it cannot be written.
    """
    goal, new = path.resolve(), None
    try:
        if goal.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if goal.exists() and not os.access(goal, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if goal.exists() and not goal.is_file():
            yield goal
            return
        # Of a length of its own: with a suffix, a name that fits might not.
        new = goal.with_name(f"{goal.name[:40]}.{uuid.uuid4().hex[:8]}.new")
        yield new
        if goal.exists():
            shutil.copymode(goal, new)
        new.replace(goal)
    except OSError as error:
        if error.filename not in (None, str(path), str(goal), str(new)):
            raise  # of another file, which was written meanwhile
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        if new is not None:
            with suppress(OSError):
                new.unlink()


def unwritten(error: OSError) -> ConfigError:
    """The error for who asked for a file that :func:`replacing` could not write."""
    return ConfigError(f"{error.filename} cannot be written: {error.strerror}.")
