"""The drawing engine and the sheet."""

from __future__ import annotations

import numpy as np
import pytest

from tome_fx.cli import picture, sheet


def random_tile(height: int, width: int) -> picture.Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_group_is_filled_with_the_mean_of_all_its_patches() -> None:
    tile = np.zeros((2, 6, 3), dtype=np.uint8)
    tile[:, 0:2], tile[:, 2:4], tile[:, 4:6] = (10, 0, 0), (99, 99, 99), (30, 4, 8)
    filled = picture.fill_groups(tile, np.array([[7, 3, 7]]))
    assert filled[0, 0].tolist() == filled[1, 5].tolist() == [20, 2, 4]
    assert filled[0, 2].tolist() == [99, 99, 99]


def test_patches_of_one_pixel_alone_change_nothing() -> None:
    tile = random_tile(4, 5)
    groups = np.arange(20).reshape(4, 5)
    assert np.array_equal(picture.fill_groups(tile, groups), tile)


def test_one_group_has_one_colour_and_no_line() -> None:
    tile = random_tile(8, 8)
    groups = np.zeros((2, 2), dtype=np.int64)
    drawn = picture.merged(tile, groups)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1
    assert not picture.borders(groups, 8, 8, 2).any()


def test_a_line_runs_only_between_groups() -> None:
    mask = picture.borders(np.array([[0, 1], [0, 1]]), 8, 8, 2)
    assert mask[:, 3:5].all()
    assert mask.sum() == 16


@pytest.mark.parametrize("line", [1, 2, 3, 5])
def test_lines_have_their_width(line: int) -> None:
    mask = picture.borders(np.array([[0], [1]]), 24, 24, line)
    assert mask[:, 0].sum() == line
    assert mask.sum() == line * 24


def test_an_outer_corner_has_no_notch() -> None:
    mask = picture.borders(np.array([[0, 0], [0, 1]]), 16, 16, 2)
    assert mask[7:9, 7:9].all()


def test_lines_wider_than_the_patches_stay_inside_the_picture() -> None:
    mask = picture.borders(np.arange(4).reshape(2, 2), 4, 4, 9)
    assert mask.shape == (4, 4)
    assert mask.all()


def test_no_line_on_request() -> None:
    tile, groups = random_tile(8, 8), np.arange(4).reshape(2, 2)
    assert np.array_equal(picture.merged(tile, groups, 0), picture.fill_groups(tile, groups))


@pytest.mark.parametrize(("level", "brighter"), [(40, True), (250, False)])
def test_lines_are_seen_on_dark_and_on_bright(level: int, brighter: bool) -> None:
    tile = np.full((8, 8, 3), level, dtype=np.uint8)
    drawn = picture.merged(tile, np.array([[0, 1]]), 2)
    assert (drawn[0, 4] > tile[0, 4]).all() == brighter
    assert abs(int(drawn[0, 4, 0]) - level) > 100


def test_patches_must_divide_the_picture() -> None:
    with pytest.raises(ValueError, match="3 x 2 patches do not divide 8 x 8 pixels"):
        picture.upscale(np.zeros((3, 2), dtype=np.int64), 8, 8)


def test_the_input_is_left_alone() -> None:
    tile, groups = random_tile(8, 8), np.arange(4).reshape(2, 2)
    before = tile.copy(), groups.copy()
    picture.merged(tile, groups)
    assert np.array_equal(tile, before[0])
    assert np.array_equal(groups, before[1])


def test_the_sheet_holds_every_tile_unchanged() -> None:
    tiles = [[random_tile(64, 64) // (1 + row + column) for column in range(3)] for row in range(2)]
    columns = [sheet.Column("image", "196 patches"), sheet.Column("layer 4"), sheet.Column("x")]
    drawn = np.asarray(sheet.compose(columns, tiles, ["one", "two"]))
    for row in tiles:
        for tile in row:
            assert contains(drawn, tile)


def contains(whole: picture.Pixels, part: picture.Pixels) -> bool:
    starts = np.argwhere((whole == part[0, 0]).all(axis=-1))
    height, width = part.shape[:2]
    return any(np.array_equal(whole[y : y + height, x : x + width], part) for y, x in starts)


def test_captions_are_written_above_and_never_wider_than_a_tile() -> None:
    tiles = [[np.zeros((64, 64, 3), dtype=np.uint8)] * 2]
    long = [sheet.Column("a very long caption that cannot fit", "d" * 200), sheet.Column("b")]
    drawn = np.asarray(sheet.compose(long, tiles))
    short = np.asarray(sheet.compose([sheet.Column(""), sheet.Column("b")], tiles))
    assert drawn.shape == short.shape
    columns = np.flatnonzero((drawn != short).any(axis=(0, 2)))
    assert columns.size
    assert columns.max() - columns.min() <= 66


def test_a_sheet_grows_with_rows_and_names() -> None:
    tile = random_tile(32, 32)
    one = sheet.compose([sheet.Column("a")], [[tile]])
    named = sheet.compose([sheet.Column("a")], [[tile]], ["cat.png"])
    two = sheet.compose([sheet.Column("a")], [[tile], [tile]])
    assert one.width == named.width == two.width
    assert one.height < named.height < two.height


def test_uneven_rows_and_tiles_are_refused() -> None:
    tile = random_tile(8, 8)
    with pytest.raises(ValueError, match="one tile for each column"):
        sheet.compose([sheet.Column("a")], [[tile, tile]])
    with pytest.raises(ValueError, match="different sizes"):
        sheet.compose([sheet.Column("a")] * 2, [[tile, tile[:4]]])
