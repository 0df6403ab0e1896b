"""Tiles set out as one sheet: a row for each image, a column for each layer, captions above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tome_fx.cli.picture import Pixels

PAPER = (255, 255, 255)
INK = (28, 30, 33)
FAINT = (104, 110, 118)


@dataclass(frozen=True)
class Column:
    """The caption of a column: a title, and a fainter second line."""

    title: str
    detail: str = ""


def compose(
    columns: Sequence[Column], rows: Sequence[Sequence[Pixels]], names: Sequence[str] = ()
) -> Image.Image:
    """Return the sheet, RGB. All tiles are uint8 [H, W, 3] of one size.

    `names`, one for each row, stand below the rows; left out where it is empty. Raises ValueError
    where a row has not one tile for each column, or the tiles differ in size.
    """
    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError("every row needs one tile for each column")
    shapes = {tile.shape for row in rows for tile in row}
    if len(shapes) != 1:
        raise ValueError(f"tiles of different sizes: {sorted(shapes)}")
    height, width, _ = shapes.pop()
    layout = _Layout(width, height, len(columns), len(rows), bool(names))
    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        layout.caption(draw, index, column)
    for row, tiles in enumerate(rows):
        for index, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), layout.corner(row, index))
        if names:
            layout.name(draw, row, names[row])
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Where everything stands, in pixels; all distances follow the size of a tile."""

    width: int
    height: int
    columns: int
    rows: int
    named: bool

    @property
    def unit(self) -> int:
        return max(4, round(min(self.width, self.height) / 32))

    @property
    def text(self) -> int:
        return max(11, round(self.unit * 1.75))

    @property
    def gap(self) -> int:
        return self.unit

    @property
    def margin(self) -> int:
        return self.unit * 2

    @property
    def head(self) -> int:
        return self.margin + round(self.text * 2.9)

    @property
    def foot(self) -> int:
        return round(self.text * 2.0) if self.named else 0

    @property
    def size(self) -> tuple[int, int]:
        inner_width = self.columns * self.width + (self.columns - 1) * self.gap
        inner_height = self.rows * (self.height + self.foot) + (self.rows - 1) * self.gap
        return inner_width + 2 * self.margin, self.head + inner_height + self.margin

    def corner(self, row: int, column: int) -> tuple[int, int]:
        left = self.margin + column * (self.width + self.gap)
        top = self.head + row * (self.height + self.foot + self.gap)
        return left, top

    def caption(self, draw: ImageDraw.ImageDraw, index: int, column: Column) -> None:
        left = self.corner(0, index)[0]
        self._line(draw, (left, self.margin), column.title, INK, self.text)
        second = (left, self.margin + round(self.text * 1.35))
        self._line(draw, second, column.detail, FAINT, self.text)

    def name(self, draw: ImageDraw.ImageDraw, row: int, text: str) -> None:
        left, top = self.corner(row, 0)
        small = round(self.text * 0.85)
        self._line(draw, (left, top + self.height + round(small * 0.35)), text, FAINT, small)

    def _line(
        self,
        draw: ImageDraw.ImageDraw,
        at: tuple[int, int],
        text: str,
        colour: tuple[int, int, int],
        size: int,
    ) -> None:
        """Write one line, shortened to the width of a tile."""
        font = ImageFont.load_default(size)
        shown = text
        while shown and draw.textlength(shown, font=font) > self.width:
            text = text[:-1]
            shown = text.rstrip() + "..."
            if not text:
                break
        draw.text(at, shown, fill=colour, font=font)
