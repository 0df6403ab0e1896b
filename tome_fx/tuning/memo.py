"""What was measured so far, by schedule: on disk, an interrupted search finds it there.

A search is determined by what it measures. Started again, it takes the same way, and what is known
costs nothing; so nothing of the search itself needs to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tome_fx.errors import ConfigError
from tome_fx.measuring.kept import difference, write_json
from tome_fx.tuning.costs import Schedule
from tome_fx.tuning.drift import Drift
from tome_fx.tuning.speed import Speed

KIND = "tome_fx tuning 1"


class Memo:
    """Drift with share of MACs, and speed, of each schedule that was tried.

    Args:
        path: a JSON file to keep them in, or None.
        settings: all that they depend on; a file of other settings is refused.

    Raises:
        ConfigError: the file is damaged, something else, cannot be written, or of another run.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.drifts: dict[Schedule, tuple[Drift, float]] = {}
        self.speeds: dict[Schedule, Speed] = {}
        if path is not None and path.is_dir():
            raise ConfigError(f"state={str(path)!r} is a folder. Name a file in it.")
        if path is not None and path.exists():
            self._load(path)
        self._save()

    def put_drift(self, r: Schedule, drift: Drift, share: float) -> None:
        """Keep the drift of a schedule, and its MACs over those of the original."""
        self.drifts[r] = drift, share
        self._save()

    def put_speed(self, r: Schedule, speed: Speed) -> None:
        """Keep the measured speed of a schedule."""
        self.speeds[r] = speed
        self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        content = {
            "kind": KIND,
            "settings": self._settings,
            "drifts": [
                {"r": r, "share": share, **asdict(drift)}
                for r, (drift, share) in self.drifts.items()
            ],
            "speeds": [{"r": r, **asdict(speed)} for r, speed in self.speeds.items()],
        }
        try:
            write_json(self._path, content)
        except OSError as error:
            raise ConfigError(f"state={str(self._path)!r} cannot be written: {error}") from None

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["kind"] != KIND:
                raise ValueError(content["kind"])
            theirs = dict(content["settings"])
            for entry in content["drifts"]:
                drift = Drift(float(entry["distance"]), _number(entry["agreement"]))
                self.drifts[_schedule(entry["r"])] = drift, float(entry["share"])
            for entry in content["speeds"]:
                speed = Speed(float(entry["speedup"]), float(entry["q1"]), float(entry["q3"]))
                self.speeds[_schedule(entry["r"])] = speed
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"state={str(path)!r} is no state of tome_fx.tune. Name another file, or delete it."
            ) from None
        if told := difference(self._settings, theirs):
            raise ConfigError(
                f"state={str(path)!r} is of a run with {told}. Name another file, or delete it."
            )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _schedule(value: Any) -> Schedule:
    return tuple(int(count) for count in value)
