"""The entry point: from arguments to an exit code, with one line for whatever goes wrong.

Only the standard library is imported at the top, so that a missing extra can be told in a line.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from tome_fx.cli.failure import INTERRUPTED, CliError, missing_extra, one_line
from tome_fx.errors import ConfigError, ToMeError

BAD_INPUT = 2
# What a command goes on from, by the flag that names it.
_KEPT = {"tune": "--state", "validate": "--results-file", "bench": "--suite"}
_ANEW = {"--fresh", "--no-resume"}


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0: done; 1: a fault of the program; 2: bad input, told in exactly one line on stderr;
    130: interrupted. With `--debug` anywhere, an exception goes through with its traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        with warnings.catch_warnings():
            from tome_fx.cli import app

            app.calm(debug)
            return app.call(args)
    except KeyboardInterrupt:
        return _say(f"interrupted{_kept(args)}", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone: keep the interpreter from flushing into the void.
        sys.stdout = None
        return 1
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, ConfigError):
        from tome_fx.cli.wording import as_flags

        return _say(one_line(as_flags(str(error))), BAD_INPUT)
    if isinstance(error, CliError | ToMeError):  # which may quote a model
        return _say(one_line(error), BAD_INPUT)
    if isinstance(error, ModuleNotFoundError) and (line := missing_extra(error)):
        return _say(line, BAD_INPUT)
    kind = type(error).__name__
    return _say(f"{kind}: {one_line(error)} (--debug shows where)", 1)


def _kept(args: Sequence[str]) -> str:
    """Return what to do next where a command has kept what it had done."""
    flags = {arg.partition("=")[0] for arg in args}
    command = next((arg for arg in args if not arg.startswith("-")), "")
    if _KEPT.get(command, "") in flags and not flags & _ANEW:
        return "; the same command goes on from what is kept"
    return ""


def _say(text: str, code: int) -> int:
    print(f"tome-fx: {text}", file=sys.stderr)
    return code


def main() -> NoReturn:
    """Run the command line of this process, then exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it cannot write
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run())


if __name__ == "__main__":
    main()
