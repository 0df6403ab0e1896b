"""Speed against drift as SVG, written out: a picture of dots needs no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 36, 48
COLOURS = {"constant r": "#d1495b", "other": "#8d99ae", "refined": "#2a6f97", "chosen": "#1b1b1e"}


@dataclass(frozen=True)
class Dot:
    """One schedule: its speed-up and drift, its shape, and whether the speed was measured."""

    speed: float
    drift: float
    shape: str
    measured: bool


@dataclass(frozen=True)
class Axis:
    """Numbers from ``low`` to ``high`` laid on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)


def drawn(dots: Sequence[Dot], chosen: Dot, title: str) -> str:
    """Return the picture: filled dots were measured, the speed of the others is predicted."""
    shown = [dot for dot in dots if math.isfinite(dot.drift)]
    x = _axis([1.0, *(dot.speed for dot in shown), chosen.speed], LEFT, WIDTH - RIGHT)
    y = _axis([0.0, *(dot.drift for dot in shown), chosen.drift], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_frame(x, y, title),
        *_line([dot for dot in shown if dot.shape == "constant r"], x, y),
        *(_dot(dot, x, y) for dot in shown),
        f'<circle cx="{x(chosen.speed)}" cy="{y(chosen.drift)}" r="8" fill="none" '
        f'stroke="{COLOURS["chosen"]}" stroke-width="2"/>',
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    return Axis(low, high + 0.05 * ((high - low) or 1.0), start, end)


def _ticks(axis: Axis) -> list[float]:
    """Round numbers, four to ten of them."""
    size = (axis.high - axis.low) / 5
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= size)
    first = math.ceil(axis.low / step - 1e-9)
    return [step * n for n in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _frame(x: Axis, y: Axis, title: str) -> list[str]:
    parts = [
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}: drift and speed</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "times as fast as the original</text>",
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">drift of the outputs</text>',
    ]
    for value in _ticks(x):
        parts.append(
            f'<path d="M{x(value)} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>'
            f'<text x="{x(value)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{value:.4g}</text>"
        )
    for value in _ticks(y):
        parts.append(
            f'<path d="M{LEFT} {y(value)}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.4g}</text>'
        )
    return parts


def _line(dots: Sequence[Dot], x: Axis, y: Axis) -> list[str]:
    points = " ".join(f"{x(dot.speed)},{y(dot.drift)}" for dot in sorted(dots, key=_speed))
    colour = COLOURS["constant r"]
    return [f'<polyline points="{points}" fill="none" stroke="{colour}" opacity="0.5"/>']


def _speed(dot: Dot) -> float:
    return dot.speed


def _dot(dot: Dot, x: Axis, y: Axis) -> str:
    colour = COLOURS.get(dot.shape, COLOURS["other"])
    fill = colour if dot.measured else "white"
    return (
        f'<circle cx="{x(dot.speed)}" cy="{y(dot.drift)}" r="4" fill="{fill}" stroke="{colour}">'
        f"<title>{escape(dot.shape)}: {dot.speed:.2f}x, drift {dot.drift:.4g}</title></circle>"
    )


def _legend() -> list[str]:
    parts = []
    for row, (name, colour) in enumerate(COLOURS.items()):
        top = TOP + 14 + 18 * row
        fill, size = ("none", 6) if name == "chosen" else (colour, 4)
        parts.append(
            f'<circle cx="{LEFT + 14}" cy="{top}" r="{size}" fill="{fill}" stroke="{colour}"/>'
            f'<text x="{LEFT + 26}" y="{top + 4}">{name}</text>'
        )
    note = TOP + 14 + 18 * len(COLOURS)
    return [*parts, f'<text x="{LEFT + 8}" y="{note + 4}">filled: measured</text>']
