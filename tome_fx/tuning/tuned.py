"""What a tuning found: a schedule, the module that it makes, and the curve behind the choice."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tome_fx.errors import ConfigError
from tome_fx.files import file_path, unwritten
from tome_fx.measuring.kept import write_text
from tome_fx.module import ToMeModule
from tome_fx.recipe import save_recipe
from tome_fx.tuning.plot import Dot, drawn


@dataclass(frozen=True)
class Point:
    """One schedule that was looked at.

    Attributes:
        r: tokens removed at each layer.
        shape: where it comes from: ``constant r``, a family such as ``linear -1``, ``refined``.
        flop_ratio: multiply-accumulates of the original over its own, matching included.
        predicted: the speed-up expected of it, by the measurements of this run.
        speedup: the speed-up measured, None for most.
        drift: relative change of the outputs, mean over images; see ``tome_fx.tuning.drift``.
        agreement: share of images whose first class is the original's; None without classes.
    """

    r: tuple[int, ...]
    shape: str
    flop_ratio: float
    predicted: float
    speedup: float | None
    drift: float
    agreement: float | None

    @property
    def speed(self) -> float:
        """The speed-up measured, or else predicted."""
        return self.predicted if self.speedup is None else self.speedup


@dataclass(frozen=True)
class Tuned:
    """The answer of :func:`tome_fx.tune`.

    Attributes:
        schedule: tokens to remove at each layer.
        speedup: how many times faster than the original, measured in turn with it: ratio of the
            medians; ``speedup_q1`` and ``speedup_q3`` are quartiles of the ratios round by round.
        drift, agreement, flop_ratio: as of :class:`Point`.
        curve: every schedule that was looked at, in that order.
        module: the model, merging as the schedule says.
    """

    schedule: tuple[int, ...]
    speedup: float
    speedup_q1: float
    speedup_q3: float
    drift: float
    agreement: float | None
    flop_ratio: float
    curve: tuple[Point, ...] = field(repr=False)
    module: ToMeModule = field(repr=False, compare=False)

    @property
    def r(self) -> list[int]:
        """The schedule as ``transform`` and recipes take it."""
        return list(self.schedule)

    def save_recipe(self, path: str | Path, *, weights: bool = False) -> Path:
        """Write a recipe for :func:`tome_fx.apply_recipe`; arguments as of ``save_recipe``."""
        return save_recipe(self.module, path, weights=weights)

    def save_curve(self, path: str | Path) -> Path:
        """Write the curve, a record for each point: ``.csv`` or ``.json`` by the name.

        Raises:
            TypeError: ``path`` is no path.
            ConfigError: another suffix, or the file cannot be written.
        """
        path = file_path(path, "A curve")
        records = [asdict(point) for point in self.curve]
        text = io.StringIO(newline="")
        if path.suffix == ".json":
            whole = _finite([{**one, "r": list(one["r"])} for one in records])
            text.write(json.dumps(whole, indent=1) + "\n")
        elif path.suffix == ".csv":
            writer = csv.DictWriter(text, [item.name for item in fields(Point)])
            writer.writeheader()
            writer.writerows({**one, "r": " ".join(map(str, one["r"]))} for one in records)
        else:
            raise ConfigError(f"{path}: a curve is written as .csv or .json.")
        return _written(path, text.getvalue())

    def plot(self, path: str | Path) -> Path:
        """Draw speed against drift as an SVG picture.

        Raises:
            TypeError: ``path`` is no path.
            ConfigError: another suffix than ``.svg``, or the file cannot be written.
        """
        path = file_path(path, "A plot")
        if path.suffix != ".svg":
            raise ConfigError(f"{path}: a plot is written as .svg.")
        dots = [Dot(one.speed, one.drift, one.shape, one.speedup is not None) for one in self.curve]
        chosen = Dot(self.speedup, self.drift, "chosen", True)
        return _written(path, drawn(dots, chosen, f"{self.module.report.model}"))


def _written(path: Path, text: str) -> Path:
    try:
        write_text(path, text)
    except OSError as error:
        raise unwritten(error) from None
    return path


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if value in (float("inf"), -float("inf")) else value
