"""A progress bar that needs nothing but stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds between two lines where nobody watches


@contextmanager
def bar(total: int) -> Iterator[Callable[[str], None]]:
    """Show ``done/total`` and a note: one line on a terminal, a line now and then elsewhere.

    ``total`` is a bound: a search that finds nothing better ends sooner.
    """
    done, last = 0, time.monotonic()
    watched = sys.stderr.isatty()

    def advance(note: str) -> None:
        nonlocal done, last
        done += 1
        text = f"tuning: {done} of at most {max(done, total)}, {note}"
        if watched:
            _say(f"\r{text:<79}")
        elif time.monotonic() - last > EVERY:
            last = time.monotonic()
            _say(text + "\n")

    try:
        yield advance
    finally:
        if watched and done:
            _say("\n")


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
