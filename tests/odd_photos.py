"""Files of many kinds that a folder of photos may hold: what each shows, or why it is unreadable.

A photo shows four corners in colours of its own, so that one that is turned, or stands in another's
row, differs from the right one in any format.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.photo_folders import encoded

GREY = np.array([[5, 80], [160, 240]], np.uint8)
ALPHA = np.array([[255, 128], [64, 0]], np.uint8)
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 3  # by half a turn
Shown = tuple[str, bytes, np.ndarray]  # file name, content, (2, 2, 3) levels of the corners


def corners_of(name: str) -> np.ndarray:
    """(2, 2, 3) uint8, far from grey and from each other, and different for every name."""
    levels = np.array([[0, 90, 180], [90, 180, 0], [180, 0, 90], [200, 200, 40]])
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    corners = draw.permuted(levels, axis=1) + draw.integers(0, 50, (4, 3))
    return draw.permutation(corners).reshape(2, 2, 3).astype(np.uint8)


def picture(corners: np.ndarray) -> Image.Image:
    """The corners as quarters of a picture, in the mode that their shape and type have."""
    return Image.fromarray(corners.repeat(24, axis=0).repeat(32, axis=1))


def readable() -> dict[str, tuple[bytes, np.ndarray]]:
    """File names, their content, and the levels of the corners that the photo shows."""
    kinds = (formats, modes, transparent)
    return {name: (data, seen) for kind in kinds for name, data, seen in kind()}


def formats() -> Iterator[Shown]:
    options: dict[str, Any]
    for name, form, options in (
        ("new\nline\x1b[31m.jpg", "JPEG", {}), ("png inside.jpg", "PNG", {}),
        ("jpeg inside.heic", "JPEG", {}), ("cmyk.jpg", "JPEG", {}), ("a.bmp", "BMP", {}),
        ("a.png", "PNG", {}), ("a.tif", "TIFF", {}), ("a.ppm", "PPM", {}), ("a.tga", "TGA", {}),
        ("a.webp", "WEBP", {}), ("a.jp2", "JPEG2000", {}),
        ("upside down.jpg", "JPEG", {"exif": TURNED}),
        ("exif.jpg", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(range(40))}),
        ("moving.gif", "GIF", {"save_all": True}), ("two.mpo", "MPO", {"save_all": True}),
    ):  # fmt: skip
        seen = corners_of(name)
        stored = seen[::-1, ::-1] if name.startswith("upside") else seen
        image = picture(stored).convert("CMYK" if "cmyk" in name else "RGB")
        if "save_all" in options:  # the first of several is what counts
            options = options | {"append_images": [picture(corners_of(late)) for late in "ab"]}
        options = options if form == "TIFF" else options | {"quality": 95}
        yield name, encoded(image, form, **options), seen
    yield "video behind.jpg", encoded(picture(seen), quality=95) + b"\xff\xda video", seen


def modes() -> Iterator[Shown]:
    deep = GREY.astype(np.uint16) * 257
    odd = np.array([[-9, 5e4 * 240], [np.nan, 5e4 * 120]], np.float32)
    for name, form, stored, seen in (
        ("grey.jpg", "JPEG", GREY, GREY), ("1 bit.png", "PNG", GREY > 99, (GREY > 99) * 255),
        ("16 bits.png", "PNG", deep, GREY), ("32 bits.tif", "TIFF", deep.astype(np.int32), GREY),
        ("float.tif", "TIFF", GREY.astype(np.float32) / 255, GREY),
        ("odd.tif", "TIFF", odd, np.array([[0, 255], [0, 127]])),
    ):  # fmt: skip
        yield name, encoded(picture(stored), form), seen[..., None].repeat(3, axis=-1)


def transparent() -> Iterator[Shown]:
    """Each is laid over white."""
    share, seen = ALPHA[..., None] / 255, corners_of("transparent")
    rgba = picture(np.dstack([seen, ALPHA]))
    yield "rgba.png", encoded(rgba, "PNG"), seen * share + 255 * (1 - share)
    grey_alpha = Image.merge("LA", [picture(GREY), picture(ALPHA)])
    yield "la.png", encoded(grey_alpha, "PNG"), GREY[..., None] * share + 255 * (1 - share)
    palette = picture(np.array([[0, 1], [2, 3]], np.uint8))
    palette.putpalette(seen.tobytes())
    seen[1, 0] = 255
    yield "palette.png", encoded(palette, "PNG", transparency=2), seen


def noise(form: str) -> bytes:
    """A picture of which no part can be missed."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels), form)


def unreadable() -> dict[str, tuple[bytes, str]]:
    """File names, their content, and words of the reason."""
    png = noise("PNG")
    middle = len(png) // 2
    huge = b"IHDR" + struct.pack(">II", 50_000, 50_000) + png[24:29]
    return {
        **{
            f"half a {form}.jpg": (noise(form)[: len(noise(form)) // 2], ".")
            for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
        },
        "empty.jpg": (b"", "not an image"),
        "page.jpg": (b"<!DOCTYPE html><html>", "not an image"),
        "figure.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "loop.tif": (b"II*\0\x08\0\0\0\0\0\x08", "not an image"),
        "flipped.png": (png[:middle] + b"flipped" + png[middle + 7 :], "broken"),
        "bomb.png": (png[:12] + huge + struct.pack(">I", zlib.crc32(huge)) + png[33:], "exceeds"),
        "phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not decoded.*as JPEG"),
        "raw.nef": (encoded(picture(GREY), "TIFF"), "nef is not decoded.*as JPEG"),
    }
