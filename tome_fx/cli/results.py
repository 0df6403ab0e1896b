"""Results on disk, csv or json, with what is needed to make them again."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tome_fx.cli.console import finite
from tome_fx.cli.failure import CliError, one_line
from tome_fx.cli.measure import Row, Settings
from tome_fx.cli.memory import method
from tome_fx.cli.models import Loaded
from tome_fx.measuring.machine import device_name
from tome_fx.measuring.sheets import write_csv

FORMATS = ("csv", "json")


def choose_format(path: Path | None, wanted: str | None) -> str:
    """Return csv or json: what was asked for, else by the file's suffix, else csv (as timm).

    Raises CliError for another format, and where the file could not be written later.
    """
    if wanted is not None and wanted not in FORMATS:
        raise CliError(f"--results-format {wanted}: not one of {', '.join(FORMATS)}")
    if path is not None:
        check_writable(path, "--results-file")
    suffix = path.suffix.lstrip(".") if path else ""
    return wanted or (suffix if suffix in FORMATS else "csv")


def check_writable(path: Path, flag: str) -> None:
    """Raise CliError where a file could not be written, before any long work."""
    if path.is_dir():
        raise CliError(f"{flag} {path}: is a folder")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise CliError(f"{flag} {path}: the folder {parent} does not exist")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise CliError(f"{flag} {path}: cannot be written")


def make_folder(path: Path, flag: str) -> None:
    """Make a folder. Raises CliError where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = "is a file" if isinstance(error, FileExistsError) else one_line(error)
        raise CliError(f"{flag} {path}: {told}") from None


def environment(loaded: Loaded, settings: Settings) -> dict[str, Any]:
    """Return what the figures depend on: versions, device, threads, precision, method."""
    return machine(loaded, settings.amp) | {
        "rounds": settings.rounds,
        "warmup": settings.warmup,
        "compile": _compile(settings.compile_mode),
        "grad": "inference_mode",
        "memory": method(loaded.device),
        "weights": loaded.weights,
    }


def _compile(mode: str) -> str:
    return "torch.compile(model), " + ("defaults" if mode == "default" else f"mode={mode}")


def machine(loaded: Loaded, amp: torch.dtype | None) -> dict[str, Any]:
    """Return versions, device, threads and precision; `amp` is the dtype of autocast."""
    return machine_of(loaded.device, loaded.dtype, amp)


def machine_of(device: torch.device, dtype: torch.dtype, amp: torch.dtype | None) -> dict[str, Any]:
    """Return the same for a device and the dtype of a model."""
    precision = f"amp {amp}" if amp else str(dtype)
    return {
        "tome_fx": _version("tome_fx"),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": precision.replace("torch.", ""),
    }


def told(around: Mapping[str, Any]) -> str:
    """Return where figures come from, in a few words, of what `machine` gives."""
    return (
        f"{around['device_name']}, threads: {around['threads']}, torch {around['torch']},"
        f" {around['precision']}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def document(rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Return environment and rows as one JSON-able value."""
    return {"environment": settings, "results": [dataclasses.asdict(row) for row in rows]}


def write(path: Path, kind: str, rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """Write the results; in csv every line also holds the environment, as columns."""
    write_records(path, kind, [dataclasses.asdict(row) for row in rows], settings)


def write_records(
    path: Path, kind: str, records: Sequence[dict[str, Any]], settings: dict[str, Any]
) -> None:
    """Write lines that are dicts with the same keys, as `write` does."""
    if kind == "json":
        whole = finite({"environment": settings, "results": list(records)})
        path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        return
    lines = [record | settings for record in records]
    write_csv(path, lines)
