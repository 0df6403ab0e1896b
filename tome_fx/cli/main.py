"""The entry point: from arguments to an exit code, with one line for whatever goes wrong.

Only the standard library is imported at the top, so that a missing extra can be told in a line.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from tome_fx.cli.failure import CliError, missing_extra, one_line
from tome_fx.errors import ToMeError

BAD_INPUT = 2


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
        return _say("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone: keep the interpreter from flushing into the void.
        sys.stdout = None
        return 1
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, CliError | ToMeError):
        return _say(one_line(error), BAD_INPUT)
    if isinstance(error, ModuleNotFoundError) and (line := missing_extra(error)):
        return _say(line, BAD_INPUT)
    kind = type(error).__name__
    return _say(f"{kind}: {one_line(error)} (--debug shows where)", 1)


def _say(text: str, code: int) -> int:
    print(f"tome-fx: {text}", file=sys.stderr)
    return code


def main() -> NoReturn:
    """Run the command line of this process, then exit."""
    sys.exit(run())


if __name__ == "__main__":
    main()
