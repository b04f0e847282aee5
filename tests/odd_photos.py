"""Files of many kinds that a folder of photos may hold: what each shows, or why it is unreadable.

A photo shows four corners in colours of its own, so that one that is turned, or stands in another's
row, differs from the right one in any format.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.photo_folders import encoded

GREY = np.array([[5, 80], [160, 240]], np.uint8)
ALPHA = np.array([[255, 128], [64, 0]], np.uint8)
Shown = tuple[str, bytes, np.ndarray]  # file name, content, (2, 2, 3) levels of the corners


def corners_of(name: str) -> np.ndarray:
    """(2, 2, 3) uint8, far from grey and from each other, and different for every name."""
    levels = np.array([[0, 90, 180], [90, 180, 0], [180, 0, 90], [200, 200, 40]])
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    corners = draw.permuted(levels, axis=1) + draw.integers(0, 50, (4, 3))
    return draw.permutation(corners).reshape(2, 2, 3).astype(np.uint8)


def picture(corners: np.ndarray, width: int = 64, height: int = 48) -> Image.Image:
    """The corners as quarters of a picture, in the mode that their shape and type have."""
    return Image.fromarray(corners.repeat(height // 2, axis=0).repeat(width // 2, axis=1))


def readable() -> dict[str, tuple[bytes, np.ndarray]]:
    """File names, their content, and the levels of the corners that the photo shows."""
    kinds = (formats, turned, modes, transparent)
    return {name: (data, seen) for kind in kinds for name, data, seen in kind()}


def formats() -> Iterator[Shown]:
    options: dict[str, Any]
    for name, form, options in (
        ("UPPER.JPG", "JPEG", {}), ("progressive.jpg", "JPEG", {"progressive": True}),
        ("restarts.jpg", "JPEG", {"restart_marker_blocks": 2}), ("png inside.jpg", "PNG", {}),
        ("exif.jpg", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(range(40))}),
        ("gif inside.jpg", "GIF", {}), ("bmp inside.jpg", "BMP", {}), ("a.bmp", "BMP", {}),
        ("jpeg inside.heic", "JPEG", {}), ("cmyk.jpg", "JPEG", {}), ("cmyk.tif", "TIFF", {}),
        ("a.png", "PNG", {}), ("a.tif", "TIFF", {}), ("a.ppm", "PPM", {}), ("a.tga", "TGA", {}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}), ("a.jp2", "JPEG2000", {}),
        ("a.webp", "WEBP", {}), ("2 'words' & 50 %.jpg", "JPEG", {}), ("雪.jpg", "JPEG", {}),
        ("new\nline\x1b[31m.jpg", "JPEG", {}), ("sub/er/folder.jpg/inside.jpg", "JPEG", {}),
        ("wide.png", "PNG", {}), ("moving.gif", "GIF", {"save_all": True}),
        ("moving.webp", "WEBP", {"save_all": True}), ("moving.png", "PNG", {"save_all": True}),
        ("pages.tif", "TIFF", {"save_all": True}), ("two.mpo", "MPO", {"save_all": True}),
    ):  # fmt: skip
        seen = corners_of(name)
        image = picture(seen, *((20000, 16) if "wide" in name else ()))
        image = image.convert("CMYK") if "cmyk" in name else image
        if "save_all" in options:  # the first of several is what counts
            options = options | {"append_images": [picture(corners_of(late)) for late in "ab"]}
        options = options if form == "TIFF" else options | {"quality": 95}
        yield name, encoded(image, form, **options), seen
    for behind in (b"text", bytes(3000), b"\xff\xda video"):
        yield f"{behind[-2:]!r} behind.jpg", encoded(picture(seen), quality=95) + behind, seen


def turned() -> Iterator[Shown]:
    """Stored turned by each of the EXIF standard's numbers."""
    for number in range(1, 9):
        seen = corners_of(str(number))
        stored = {
            1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.swapaxes(0, 1),
            6: np.rot90(seen), 7: seen[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(seen, -1),
        }[number]  # fmt: skip
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        yield f"exif {number}.jpg", encoded(picture(stored), quality=95, exif=exif), seen


def modes() -> Iterator[Shown]:
    deep = GREY.astype(np.uint16) * 257
    odd = np.array([[-9, 5e4 * 240], [np.nan, 5e4 * 120]], np.float32)
    for name, form, stored, seen in (
        ("grey.png", "PNG", GREY, GREY), ("grey.jpg", "JPEG", GREY, GREY),
        ("16 bits.png", "PNG", deep, GREY), ("16 bits.tif", "TIFF", deep, GREY),
        ("16 bits.ppm", "PPM", deep, GREY), ("32 bits.tif", "TIFF", deep.astype(np.int32), GREY),
        ("float.tif", "TIFF", GREY.astype(np.float32) / 255, GREY),
        ("odd.tif", "TIFF", odd, np.array([[0, 255], [0, 127]])),
        ("1 bit.png", "PNG", GREY > 99, (GREY > 99) * 255),
    ):  # fmt: skip
        yield name, encoded(picture(stored), form), seen[..., None].repeat(3, axis=-1)


def transparent() -> Iterator[Shown]:
    """Each is laid over white."""
    share = ALPHA[..., None] / 255
    for name, form in (("rgba.png", "PNG"), ("rgba.webp", "WEBP"), ("rgba.tif", "TIFF")):
        seen = corners_of(name)
        data = encoded(picture(np.dstack([seen, ALPHA])), form, lossless=True, exact=True)
        yield name, data, seen * share + 255 * (1 - share)
    grey_alpha = Image.merge("LA", [picture(GREY), picture(ALPHA)])
    yield "la.png", encoded(grey_alpha, "PNG"), GREY[..., None] * share + 255 * (1 - share)
    for name, form in (("palette.png", "PNG"), ("palette.gif", "GIF")):
        seen = corners_of(name)
        image = picture(np.array([[0, 1], [2, 3]], np.uint8))
        image.putpalette(seen.tobytes())
        seen[1, 0] = 255
        yield name, encoded(image, form, transparency=2), seen


def noise(form: str = "JPEG") -> bytes:
    """A picture of which no part can be missed."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    return encoded(Image.fromarray(pixels), form)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def unreadable() -> dict[str, tuple[bytes, str]]:
    """File names, their content, and words of the reason."""
    jpeg, png = noise(), noise("PNG")
    table, middle = jpeg.index(b"\xff\xc4"), len(png) // 2
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(100 << 20)))
    huge = chunk(b"IHDR", struct.pack(">II", 50_000, 50_000) + png[24:29])
    no_image = {
        "page.jpg": b"<!DOCTYPE html><html>", "a.png": gzip.compress(png), "zeros.jpg": bytes(99),
        "figure.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "noise.jpg": jpeg[99:],
        "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "loop.tif": b"II*\0\x08\0\0\0\0\0\x08",
    }  # fmt: skip
    return {
        **{name: (data, "not an image") for name, data in no_image.items()},
        **{
            f"{form} {quarter} of 4.jpg": (noise(form)[: len(noise(form)) * quarter // 4], ".")
            for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
            for quarter in (1, 2, 3)
        },
        "empty.jpg": (b"", "not an image"),
        "codes.jpg": (jpeg[: table + 5] + b"\xff" * 16 + jpeg[table + 21 :], "broken"),
        "flipped.png": (png[:middle] + b"flipped" + png[middle + 7 :], "broken"),
        "text bomb.png": (png[:33] + text + png[33:], "Decompressed data too large"),
        "bomb.png": (png[:8] + huge + png[33:], "exceeds limit"),
        "phone.HEIC": (no_image["phone.jpg"], "HEIC is not decoded.*as JPEG"),
        "raw.nef": (encoded(picture(GREY), "TIFF"), "nef is not decoded.*as JPEG"),
    }
