"""Photographs of every awkward kind: converted where that is possible, else one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from tome_fx.cli import models, tiles
from tome_fx.cli.failure import CliError
from tome_fx.cli.images import open_image
from tome_fx.cli.preprocess import DataConfig, field_of_view, to_batch

CONFIG = DataConfig((3, 32, 32), crop_pct=1.0)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def halves(left: object, right: object, mode: str = "RGB") -> Image.Image:
    """A picture of 8 x 4: one colour on the left half, another on the right."""
    image = Image.new(mode, (8, 4), left)  # type: ignore[arg-type]
    image.paste(right, (4, 0, 8, 4))  # type: ignore[call-overload]
    return image


def failure(path: Path, **options: int) -> str:
    with pytest.raises(CliError) as caught:
        open_image(path, **options)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_rgb_comes_through_unchanged(tmp_path: Path) -> None:
    image = halves((255, 0, 0), (0, 10, 255))
    assert np.array_equal(open_image(saved(image, tmp_path / "a.png")), image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "YCbCr"])
def test_every_common_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.jpg" if mode == "YCbCr" else "a.png"
    source = Image.new("RGB", (8, 4), (200, 200, 200)).convert(mode)
    found = open_image(saved(source, tmp_path / name))
    assert found.mode == "RGB"
    assert found.size == (8, 4)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = halves((255, 0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: the left half comes to lie above
    path = saved(image, tmp_path / "a.png", exif=exif)
    found = open_image(path)
    assert found.size == (4, 8)
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert found.getpixel((0, 7)) == (0, 0, 255)


def test_damaged_exif_does_not_spoil_the_picture(tmp_path: Path) -> None:
    path = saved(halves((255, 0, 0), (0, 0, 255)), tmp_path / "a.png", exif=b"Exif\0\0garbage")
    assert open_image(path).size == (8, 4)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_converted(tmp_path: Path, name: str) -> None:
    found = open_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / name))
    red, green, blue = found.getpixel((8, 8))  # type: ignore[misc]
    assert red > 240
    assert green < 15
    assert blue < 15


def test_sixteen_bits_become_eight_without_clipping(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    found = np.asarray(open_image(saved(Image.fromarray(values), tmp_path / "a.png")))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_colour_is_read(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 0, 128 * 257))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert open_image(path).getpixel((0, 0)) == (255, 0, 128)


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    values = np.array([[0, 70000]], dtype=np.int32)
    assert "70000" in failure(saved(Image.fromarray(values), tmp_path / "a.tif"))


def test_floats_between_0_and_1_are_read_and_others_refused(tmp_path: Path) -> None:
    good = Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32))
    found = open_image(saved(good, tmp_path / "a.tif"))
    assert np.asarray(found)[0, :, 0].tolist() == [0, 255]
    for value in (-1.0, 300.0, float("nan")):
        bad = Image.fromarray(np.array([[0.0, value]], dtype=np.float32))
        assert "floating point" in failure(saved(bad, tmp_path / "b.tif"))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = halves((255, 0, 0, 255), (0, 0, 0, 0), "RGBA")
    found = open_image(saved(image, tmp_path / "a.png"))
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert found.getpixel((7, 0)) == (255, 255, 255)


def test_an_embedded_profile_is_applied_and_a_damaged_one_left_aside(tmp_path: Path) -> None:
    image = halves((200, 30, 30), (30, 30, 200))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = open_image(saved(image, tmp_path / "a.png", icc_profile=profile))
    assert np.abs(np.asarray(same).astype(int) - np.asarray(image)).max() <= 2
    broken = open_image(saved(image, tmp_path / "b.png", icc_profile=b"no profile"))
    assert np.array_equal(broken, image)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    path = saved(Image.new("L", (2000, 1000)), tmp_path / "a.png")
    assert "2000 x 1000 is 2,000,000 pixels, over the limit" in failure(path, max_pixels=1_999_999)
    assert open_image(path, max_pixels=2_000_000).size == (2000, 1000)


def test_a_bomb_is_refused_without_decoding(tmp_path: Path) -> None:
    path = saved(Image.new("L", (4, 4)), tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    assert "pixels" in failure(path)


def test_a_strip_that_resizing_would_blow_up_is_refused(tmp_path: Path) -> None:
    assert "short side" in failure(saved(Image.new("L", (5100, 100)), tmp_path / "a.png"))


def test_a_picture_cut_short_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:2000])
    assert "unreadable image" in failure(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "image" in failure(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert failure(tmp_path / "none.png").endswith("does not exist")
    assert failure(tmp_path).endswith("is a folder, not an image")


def test_a_batch_is_what_timm_makes_of_it() -> None:
    from timm.data import create_transform

    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    config = DataConfig((3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9)
    wanted = create_transform(
        (3, 32, 32), mean=config.mean, std=config.std, crop_pct=0.9, interpolation="bicubic"
    )(image)
    found = to_batch([image, image], config)
    assert found.shape == (2, 3, 32, 32)
    assert (found[1] == wanted).all()


def test_one_channel_is_luminance() -> None:
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    assert to_batch([image], DataConfig((1, 32, 32))).unique().tolist() == [1.0]


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(CliError, match="the model takes 5"):
        to_batch([Image.new("RGB", (40, 40))], DataConfig((5, 32, 32)))


def test_the_picture_shows_what_the_model_sees() -> None:
    image = Image.new("RGB", (96, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    seen = field_of_view(image, CONFIG, (128, 128))
    assert seen.shape == (128, 128, 3)
    assert seen.dtype == np.uint8
    assert (seen[:, 8:-8] == (0, 0, 255)).all()


def test_windows_with_a_map_each_are_not_drawn() -> None:
    """It is said at once, not when all images have been looked at."""
    loaded = models.load(models.ModelSpec("vit_tiny_patch16_224", pretrained=False))
    seen: list[int] = []

    class Fast:
        def token_map(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return torch.zeros(1, len(images), 4, 49, dtype=torch.int64)

    with pytest.raises(CliError, match="each of the 4 windows or views"):
        tiles.token_maps(Fast(), loaded, [Image.new("RGB", (64, 64))] * 3, batch_size=1)
    assert seen == [1]
