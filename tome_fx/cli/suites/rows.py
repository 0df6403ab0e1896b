"""Rows of a suite on disk, so that a suite that was stopped goes on where it stopped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.suites.cases import KEYS
from tome_fx.measuring.kept import write_text

Key = tuple[str, ...]
Record = dict[str, str]
FRESH = "--fresh starts anew"
# Figures of two machines, or of two versions, do not go into one file.
SAME = ("tome_fx", "torch", "timm", "python", "device", "device_name", "threads", "precision")


def as_text(record: Mapping[str, Any]) -> Record:
    """Return a record as a csv file holds it: floats at seven digits, nothing for None."""
    return {name: _text(value) for name, value in record.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def load(path: Path, columns: Sequence[str], around: Mapping[str, Any]) -> dict[Key, list[Record]]:
    """Return the rows that are there, by the key of their case; empty where there is no file.

    Raises CliError where the file is something else, or of another machine or version.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise CliError(f"{path}: cannot be read: {one_line(error, 200)} ({FRESH})") from None
    if any(list(row) != list(columns) or None in row.values() for row in rows):
        raise CliError(f"{path}: not the results of this suite ({FRESH})")
    for row in rows:
        for name in SAME:
            if row[name] != _text(around[name]):
                raise CliError(
                    f"{path}: measured with {name} {row[name]}, not {around[name]} ({FRESH})"
                )
    return by_case(rows)


def by_case(rows: Iterable[Record]) -> dict[Key, list[Record]]:
    """Return rows by the key of their case, in their order."""
    found: dict[Key, list[Record]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in KEYS), []).append(row)
    return found


def save(path: Path, rows: Sequence[Record]) -> None:
    """Write all rows. Whoever ends the process at any time finds the old file or the new one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {one_line(error, 200)}") from None
