"""Partial sums on disk, so that an interrupted run goes on from where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.scores import Sums
from tome_fx.measuring.kept import difference, write_json

KIND = "tome-fx validate, partial sums 1"
FRESH = "--fresh starts anew"


def path_of(results_file: Path) -> Path:
    """Return where the partial sums of a results file are kept: next to it."""
    return results_file.with_name(results_file.name + ".partial.json")


def save(path: Path, settings: Mapping[str, Any], sums: Mapping[str, Sums]) -> None:
    """Write the sums of each r over its first images.

    Whoever ends the process at any time finds the old file or the new one. Raises CliError where
    the disk takes neither.
    """
    content = {"kind": KIND, "settings": settings, "r": {r: asdict(s) for r, s in sums.items()}}
    try:
        write_json(path, content)
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {one_line(error, 200)}") from None


def load(path: Path, settings: Mapping[str, Any], total: int) -> dict[str, Sums]:
    """Return the sums of each r that was begun; empty where there is no file.

    Raises CliError where the file is damaged, is something else, or is of a run with other
    settings, of which it names the first.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != KIND:
            raise ValueError(content["kind"])
        theirs = dict(content["settings"])
        sums = {str(r): _sums(entry, total) for r, entry in content["r"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CliError(f"{path}: not the partial sums of a validation ({FRESH})") from None
    if told := difference(settings, theirs):
        raise CliError(f"{path}: of a run with {told} ({FRESH})")
    return sums


def _sums(entry: Any, total: int) -> Sums:
    """Return one entry. Raises ValueError, KeyError or TypeError where it cannot be right."""
    for field in fields(Sums):
        value = entry[field.name]
        kinds = (int, float) if isinstance(field.default, float) else (int,)
        if type(value) not in kinds or value < 0:
            raise ValueError(field.name)
    sums = Sums(**entry)
    if max(sums.images, sums.top1, sums.top5, sums.agree, sums.timed) > min(sums.images, total):
        raise ValueError("more hits than images")
    return sums
