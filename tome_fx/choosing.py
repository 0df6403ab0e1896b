"""Which form of attention with sizes is fastest here: measured once, and remembered.

The forms are equal (``tome_fx.ops.attention``), their speed is a matter of the kernels of a device.
On a CPU the mask costs nothing that could be measured, and nothing is. On other devices each legal
form is timed once for a device, a dtype and a shape. What was found is kept in a file, so that the
next process takes the same form: two forms differ in their rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tome_fx import ops
from tome_fx.measuring.kept import write_json
from tome_fx.passes.attend import Choose, Shapes

# Images in a batch that is timed: enough to fill a device, which is where kernels differ.
IMAGES = 64
_LOCK = threading.Lock()


def chooser(form: str) -> Choose:
    """What chooses a form, for an ``attention`` option other than ``written``.

    ``auto`` measures except on a CPU; ``measure`` measures everywhere; any other names a form that
    is taken where it is legal.
    """
    if form == "measure":
        return measured
    if form == "auto":
        return _automatic
    return lambda _, legal: form if form in legal else "mask"


def _automatic(shapes: Shapes, legal: tuple[str, ...]) -> str:
    return "mask" if shapes.device.type in ("cpu", "meta") else measured(shapes, legal)


def measured(shapes: Shapes, legal: tuple[str, ...]) -> str:
    """The fastest form, from the file if it is known there."""
    with _LOCK:
        key = key_of(shapes)
        row = _read().get(key, {})
        if not all(form in row for form in legal):
            if torch._guards.TracingContext.try_get() is not None:
                return "mask"  # inside a compilation no other can be started
            row = measure(shapes, legal)
            _write({**_read(), key: row})  # others may have written since
        return min(legal, key=row.__getitem__)


def key_of(shapes: Shapes) -> str:
    """A device, a dtype and a shape, with token counts of one kernel's tile taken as one."""
    device = shapes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    tiles = [-(-count // 32) * 32 for count in (shapes.queries, shapes.keys)]
    return (
        f"{name}, torch {torch.__version__}, {shapes.dtype}, heads {shapes.heads}/"
        f"{shapes.key_heads}, tokens {tiles[0]}x{tiles[1]}, channels {shapes.width}/"
        f"{shapes.value_width}"
    )


def measure(shapes: Shapes, legal: tuple[str, ...], images: int = IMAGES) -> dict[str, float]:
    """Seconds of each form, compiled as it will be, on random values of these shapes.

    A form that a device cannot run counts as slower than all others; the mask must run.
    """
    values = _values(shapes, images)
    how = {"enable_gqa": True} if shapes.key_heads != shapes.heads else {}
    seconds = {}
    for form in legal:
        with contextlib.nullcontext() if form == "mask" else contextlib.suppress(Exception):
            function = torch.compile(ops.FORMS[form], dynamic=False)
            seconds[form] = _time(partial(function, *values, **how))
    slowest = max(seconds.values())
    return {form: seconds.get(form, 2 * slowest) for form in legal}


def _values(shapes: Shapes, images: int) -> list[torch.Tensor]:
    generator = torch.Generator(shapes.device).manual_seed(0)
    made = partial(torch.randn, dtype=shapes.dtype, device=shapes.device, generator=generator)
    return [
        made(images, shapes.heads, shapes.queries, shapes.width),
        made(images, shapes.key_heads, shapes.keys, shapes.width),
        made(images, shapes.key_heads, shapes.keys, shapes.value_width),
        torch.ones(images, 1, 1, shapes.keys, device=shapes.device),
    ]


def _time(call: Callable[[], Any]) -> float:
    from torch.utils.benchmark import Timer  # looks for a CUDA toolkit when it is imported

    with torch.no_grad():
        call()
        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=0.05).median)


def cache_file() -> Path:
    """``attention.json`` in ``$TOME_FX_CACHE``, or in the user's cache folder."""
    own = os.environ.get("TOME_FX_CACHE")
    if own:
        return Path(own) / "attention.json"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tome_fx" / "attention.json"


def _read() -> dict[str, dict[str, float]]:
    """What is known; a file that cannot be read knows nothing."""
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
        return {str(k): {str(f): float(s) for f, s in row.items()} for k, row in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(known: dict[str, dict[str, float]]) -> None:
    """Replace the file at once; where none can be written, the next process measures again."""
    path = cache_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(sorted(known.items())))
