"""What an interrupted run leaves on disk: written whole or not at all, and known by its weights."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tome_fx.files import replacing
from tome_fx.graph.insides import kind_of, parts


def write_text(path: Path, text: str) -> None:
    """Write a file, line ends as they are.

    Whoever ends the process at any time finds the old file or the new one, of whichever process
    was last. Raises OSError where the disk takes neither.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as :func:`write_text` does."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return the first setting in which two runs differ, in words; None where they are equal."""
    ours = json.loads(json.dumps(ours))
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            return f"{key} {theirs.get(key)}, not {ours.get(key)}"
    return None


def weights_of(model: nn.Module) -> str:
    """Return a short hash of a model's parameters and buffers, by name, dtype and value."""
    return hash_of(model.state_dict().items())


def hash_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a short hash of tensors, by name, shape, dtype and value."""
    found = hashlib.sha256()
    for name, value in named:
        found.update(f"{name} {tuple(value.shape)} {value.dtype}{kind_of(value)}".encode())
        for part in parts(value.detach()):
            data = part.cpu().contiguous().reshape(-1)
            found.update(ctypes.string_at(data.data_ptr(), data.nbytes))  # numpy may not be there
    return found.hexdigest()[:16]
