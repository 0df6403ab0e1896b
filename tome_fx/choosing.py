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
from tome_fx.errors import warn
from tome_fx.measuring.kept import write_json
from tome_fx.measuring.machine import replayed
from tome_fx.passes.attend import Choose, Shapes

# Images in a batch that is timed: enough to fill a device, which is where kernels differ.
IMAGES = 64
# What is timed unless all is asked for: the rest is compiled for seconds and was not seen to win.
_USUAL = ("mask", "channel", "values", "kernel")
# What has nothing that a compiler would fuse.
_AS_IT_IS = ("mask", "kernel")
# More than bfloat16 rounds, in a share of a row of the result.
_ROUNDING = 0.05
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
    if shapes.device.type in ("cpu", "meta"):
        return "mask"
    usual = tuple(form for form in legal if form in _USUAL)
    if "kernel" in usual and _is_power_of_two(shapes.width):
        # Others copy queries, keys or values; heads that kernels fill up anyway may be worth it.
        usual = ("mask", "kernel")
    return measured(shapes, usual)


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
    """A device, a dtype and a shape, with token counts that are nearly the same taken as one."""
    device = shapes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    tiles = [_rounded(count) for count in (shapes.queries, shapes.keys)]
    # What is timed is the device alone; where a release times something else, this says so.
    return (
        f"{name}, device time, kernel 3, torch {torch.__version__}, {shapes.dtype}, heads "
        f"{shapes.heads}/{shapes.key_heads}, tokens {tiles[0]}x{tiles[1]}, channels "
        f"{shapes.width}/{shapes.value_width}"
    )


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0


def _rounded(count: int) -> int:
    """Up to a power of two, or to one and a half of one, from 32 on."""
    power = max(32, 1 << (count - 1).bit_length())
    return power * 3 // 4 if 32 < count <= power * 3 // 4 else power


def measure(shapes: Shapes, legal: tuple[str, ...], images: int = IMAGES) -> dict[str, float]:
    """Seconds of each form, compiled as it will be, on random values of these shapes.

    A form that a device cannot run, or whose result is another one than the mask's, counts as
    slower than all others; the mask must run.
    """
    values = _values(shapes, images)
    how = {"enable_gqa": True} if shapes.key_heads != shapes.heads else {}
    expected = _result(partial(_program("mask"), *values, **how))
    seconds = {}
    for form in legal:
        with contextlib.nullcontext() if form == "mask" else contextlib.suppress(Exception):
            function = _program(form)
            if form not in _AS_IT_IS:
                function = torch.compile(function, dynamic=False)
            call = partial(function, *values, **how)
            if form == "mask" or _agrees(_result(call), expected, form, shapes):
                seconds[form] = _time(call)
    slowest = max(seconds.values())
    return {form: seconds.get(form, 2 * slowest) for form in legal}


def _result(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return call()


def _agrees(found: torch.Tensor, expected: torch.Tensor, form: str, shapes: Shapes) -> bool:
    """Is each row the mask's up to rounding? Warns where one is not."""
    rows = [_apart(*images) for images in zip(found, expected, strict=True)]
    apart = float(torch.stack(rows).amax())
    if apart < _ROUNDING:
        return True
    warn(
        f"Attention in the form {form!r} is not taken ({key_of(shapes)}): a row of its result is "
        f"{apart:.2g} times the mask's away from it, which is more than rounding. What computes it "
        "on this device, with this release of torch and Triton, is at fault.",
    )
    return False


def _apart(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The largest distance of two rows, in lengths of the second."""
    wanted = expected.float()
    length, away = (torch.linalg.vector_norm(t, dim=-1) for t in (wanted, found.float() - wanted))
    largest: torch.Tensor = (away / length).amax()
    return largest


def _program(form: str) -> Callable[..., torch.Tensor]:
    """Attention as programs have it: the sizes of a stream behind those of a class token."""
    attention = ops.FORMS[form]

    def program(query: Any, key: Any, value: Any, stream: Any, **how: Any) -> torch.Tensor:
        size = torch.cat([stream.new_ones(1, 1).expand(stream.shape[0], 1), stream], dim=1)
        return attention(query, key, value, size[:, None, None], **how)

    program.__name__ = form
    return program


def _values(shapes: Shapes, images: int) -> list[torch.Tensor]:
    generator = torch.Generator(shapes.device).manual_seed(0)
    made = partial(torch.randn, dtype=shapes.dtype, device=shapes.device, generator=generator)
    # The last key stands for as many tokens as all others, so that a form without it is seen.
    sizes = torch.rand(images, shapes.keys - 1, device=shapes.device, generator=generator) * 3 + 1
    sizes[:, -1:] = 2.0 * shapes.keys
    return [
        made(images, shapes.heads, shapes.queries, shapes.width),
        made(images, shapes.key_heads, shapes.keys, shapes.width),
        made(images, shapes.key_heads, shapes.keys, shapes.value_width),
        sizes,
    ]


def _time(call: Callable[[], torch.Tensor]) -> float:
    with torch.no_grad():
        device, calls = call().device, 10
        if device.type != "cuda":
            return _here(call)
        try:
            # To call it takes longer than a small kernel does.
            return replayed(lambda: [call() for _ in range(calls)], device) / calls
        except RuntimeError:  # not everything can be recorded
            return _here(call)


def _here(call: Callable[[], torch.Tensor]) -> float:
    from torch.utils.benchmark import Timer  # looks for a CUDA toolkit when it is imported

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
