"""Photographs from disk: upright, eight bits a channel, RGB; or one line that says why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tome_fx.cli.failure import CliError, one_line

MAX_PIXELS = 100_000_000

# Resizing the shorter side of a strip to a model's size makes the longer one this much longer.
MAX_ASPECT = 50

_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def open_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the photograph as it should be seen: mode RGB, upright, in sRGB.

    EXIF rotation is applied, an embedded colour profile (CMYK, wide gamut) is converted, sixteen
    bits become eight, transparency is laid over white, of an animation the first frame is taken.
    The size is read from the header: a huge picture is refused before it is decoded.

    Raises CliError, with the path in its text, for whatever cannot be read as a picture.
    """
    if not path.is_file():
        what = "is a folder, not an image" if path.is_dir() else "does not exist"
        raise CliError(f"{path}: {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size limit: ours stands below
            with Image.open(path) as file:
                _check_size(path, file.size, max_pixels)
                file.load()
                return _to_rgb(path, _upright(file))
    except UnidentifiedImageError:
        raise CliError(f"{path}: not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError as error:
        raise CliError(f"{path}: too large: {one_line(error)}") from None
    except MemoryError:
        raise CliError(f"{path}: too large for the memory of this machine") from None
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError) as error:
        # The decoders meet damaged files with any of these.
        raise CliError(f"{path}: unreadable image: {one_line(error)}") from None


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise CliError(
            f"{path}: {width} x {height} is {width * height:,} pixels, over the limit of"
            f" {max_pixels:,} (--max-pixels)"
        )
    if max(size) > MAX_ASPECT * max(1, min(size)):
        raise CliError(
            f"{path}: {width} x {height} is longer than {MAX_ASPECT} times its short side"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # damaged EXIF data: the pixels are still good


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        image = _from_integers(path, image)
    elif image.mode == "F":
        image = _from_floats(path, image)
    profile = image.info.get("icc_profile")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if transparent:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if profile:
        image = _to_srgb(image.convert("RGB") if image.mode in ("1", "P") else image, profile)
    return image.convert("RGB")


def _from_integers(path: Path, image: Image.Image) -> Image.Image:
    """Sixteen bits to eight. Mode I is 32 bits wide, and mostly holds sixteen."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise CliError(
            f"{path}: integers from {values.min()} to {values.max()}: convert it to 8 or 16 bits"
        )
    return Image.fromarray(np.round(values / 257.0).astype(np.uint8))


def _from_floats(path: Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise CliError(f"{path}: floating point pixels outside 0 to 1: convert it to 8 or 16 bits")
    return Image.fromarray(np.round(values * 255.0).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply the embedded profile; a damaged or unfitting one is left aside, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if converted is not None else image
