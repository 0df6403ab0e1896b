"""What goes to the terminal: results on stdout, and progress on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from tome_fx.cli.processes import Processes

SHORT = 2.0  # seconds: what is over sooner is not spoken of

# A refusal is one line on stderr. Steps that may end in one stay silent for longer.
PATIENT = 15.0


class Advance(Protocol):
    """Moves a step on by one; a note replaces the one shown next to the step's name."""

    def __call__(self, note: str = "") -> None:
        """Move on by one."""


def out() -> Console:
    """Return a console on today's stdout (tests exchange it)."""
    return Console(highlight=False, markup=False, emoji=False)


def is_terminal() -> bool:
    """Tell whether stdout is read by a person."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print one JSON document. NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(finite(value), indent=2))


def finite(value: Any) -> Any:
    """Return a JSON-able value with null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


@contextmanager
def stage(text: str, total: int | None = None, after: float = SHORT) -> Iterator[Advance]:
    """Show a step while it runs: a bar or a spinner on a terminal, plain lines elsewhere.

    Yields a function that moves the bar on by one of `total`. Steps over in less than `after`
    seconds leave no trace where stderr is not a terminal, and of several processes only the first
    one shows its steps.
    """
    show = _bar if sys.stderr.isatty() else _lines
    if not Processes.from_environment().first:
        show = _nothing
    with show(text, total, after) as advance:
        yield advance


@contextmanager
def _nothing(text: str, total: int | None, after: float) -> Iterator[Advance]:
    yield lambda note="": None


@contextmanager
def _bar(text: str, total: int | None, after: float) -> Iterator[Advance]:
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    counted = [BarColumn(), MofNCompleteColumn()] if total else []
    console = Console(stderr=True, highlight=False)
    start = time.perf_counter()
    with Progress(
        *columns,
        *counted,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=not total,  # what is being timed should not share the machine with a clock
    ) as progress:
        task = progress.add_task(text, total=total)
        progress.refresh()

        def advance(note: str = "") -> None:
            shown = f"{text}: {note}" if note else None
            progress.update(task, advance=1, refresh=True, description=shown)

        yield advance
    seconds = time.perf_counter() - start
    if seconds > SHORT:
        console.print(Text.assemble(("✓ ", "green"), text, (f" {seconds:.1f} s", "dim")))


@contextmanager
def _lines(text: str, total: int | None, after: float) -> Iterator[Advance]:
    start = last = time.perf_counter()
    done, said = 0, ""
    timer = threading.Timer(after, lambda: print(f"{text} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()

    def advance(note: str = "") -> None:
        nonlocal done, last, said
        done, said = done + 1, f" ({note})" if note else said
        if total and time.perf_counter() - last > 10 and done < total:
            last = time.perf_counter()
            print(f"{text}: {done}/{total}{said}", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        timer.cancel()
    seconds = time.perf_counter() - start
    if seconds > after:
        print(f"{text}: done in {seconds:.1f} s", file=sys.stderr, flush=True)
