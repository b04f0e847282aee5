"""Files of every kind that a folder of photos may hold, each with what is to become of it.

A photo shows four corners in colours of its own, so that one that is turned, or stands in another's
row, is told from the right one in any format.
"""

import contextlib
import gzip
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.photo_folders import encoded

Maker = Callable[[Path], object]
LOSSY = 8  # levels of 255 by which a compressed colour may be off
EXACT = 1


@dataclass(frozen=True)
class Kind:
    """A file under `name`, made of bytes or by a function of its path.

    It is trained on and shows the `corners`, (2, 2, 3) levels, or it is reported with a reason
    that holds the words of `reason`.
    """

    name: str
    make: bytes | Maker
    corners: np.ndarray | None = None
    tolerance: int = EXACT
    reason: str = ""

    def put(self, folder: Path) -> None:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)


def every_kind() -> list[Kind]:
    """All kinds, by names that differ."""
    makers = (jpegs, turned, pngs, tiffs, other_formats, frames, names, links)
    broken = (cut, damaged, too_large, no_photos, no_files)
    return [kind for maker in (*makers, *broken) for kind in maker()]


def draw_corners(name: str, levels: int = 256) -> np.ndarray:
    """(2, 2, 3) uint8, other colours for every name; `levels` of them in each channel."""
    draw = np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape")))
    return (draw.integers(0, levels, (2, 2, 3)) * (255 // (levels - 1))).astype(np.uint8)


def draw_grey(name: str) -> np.ndarray:
    """(2, 2) uint8, four levels that are far from each other."""
    levels = np.array([[5, 80], [160, 240]], np.uint8)
    return np.random.default_rng(zlib.crc32(name.encode())).permuted(levels.ravel()).reshape(2, 2)


def spread(corners: np.ndarray, width: int = 64, height: int = 48) -> np.ndarray:
    """The corners as quarters of a picture."""
    return corners.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def picture(corners: np.ndarray, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(spread(corners, width, height))


def grey3(grey: np.ndarray) -> np.ndarray:
    return grey[..., None].repeat(3, axis=-1)


def rgb(name: str, form: str, tolerance: int = EXACT, **options: Any) -> Kind:
    """A plain picture in one of Pillow's formats."""
    corners = draw_corners(name)
    return Kind(name, encoded(picture(corners), form, **options), corners, tolerance)


def jpeg(corners: np.ndarray, **options: Any) -> bytes:
    return encoded(picture(corners), quality=95, **options)


def jpegs() -> Iterator[Kind]:
    variants: dict[str, dict[str, Any]] = {
        "baseline.jpg": {},
        "progressive.jpg": {"progressive": True},
        "restarts.jpg": {"restart_marker_blocks": 2},
        "full colour.jpg": {"subsampling": 0},
        "broken exif.jpg": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + bytes(range(40))},
    }
    for name, options in variants.items():
        corners = draw_corners(name)
        yield Kind(name, jpeg(corners, **options), corners, LOSSY)
    grey = draw_grey("grey.jpg")
    yield Kind("grey.jpg", jpeg(grey), grey3(grey), LOSSY)
    corners = draw_corners("text behind.jpg")
    yield Kind("text behind.jpg", jpeg(corners) + b" and a text behind it", corners, LOSSY)
    yield from four_channels()


def four_channels() -> Iterator[Kind]:
    """CMYK, and the same stored as YCCK, which Adobe's marker tells by a 2 in its last byte."""
    corners = draw_corners("cmyk.jpg")
    cmyk = encoded(picture(corners).convert("CMYK"), quality=95)
    yield Kind("cmyk.jpg", cmyk, corners, LOSSY)
    corners = draw_corners("ycck.jpg")
    bands = Image.fromarray(255 - spread(corners)).convert("YCbCr").split()
    inks = Image.merge("CMYK", (*bands, Image.new("L", bands[0].size, 255)))
    ycck = bytearray(encoded(Image.eval(inks, lambda level: 255 - level), quality=95))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield Kind("ycck.jpg", bytes(ycck), corners, LOSSY)


def turned() -> Iterator[Kind]:
    """Stored turned by each of the EXIF standard's numbers."""
    for number in range(1, 9):
        name = f"exif {number}.jpg"
        corners = draw_corners(name)
        upright = spread(corners)
        stored = {
            1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
            5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1),
            7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
        }[number]  # fmt: skip
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = number
        image = Image.fromarray(np.ascontiguousarray(stored))
        yield Kind(name, encoded(image, quality=95, exif=exif), corners, LOSSY)


def pngs() -> Iterator[Kind]:
    yield rgb("rgb.png", "PNG")
    corners = draw_corners("16 bits of colour.png")
    yield Kind("16 bits of colour.png", deep_png(spread(corners).astype(">u2") * 257), corners)
    grey = draw_grey("16 bits.png")
    deep = spread(grey.astype(np.uint16) * 257)
    yield Kind("16 bits.png", encoded(Image.fromarray(deep), "PNG"), grey3(grey))
    bits = np.array([[255, 0], [0, 0]], np.uint8)
    yield Kind("1 bit.png", encoded(picture(bits).convert("1"), "PNG"), grey3(bits))
    yield from transparent()


def transparent() -> Iterator[Kind]:
    """Each is laid over white."""
    alpha = np.array([[255, 128], [64, 0]], np.uint8)
    share = alpha[..., None] / 255
    corners = draw_corners("rgba.png")
    rgba = picture(np.dstack([corners, alpha]))
    yield Kind("rgba.png", encoded(rgba, "PNG"), corners * share + 255 * (1 - share), EXACT + 1)
    corners = draw_corners("rgba.webp")
    rgba = picture(np.dstack([corners, alpha]))
    webp = encoded(rgba, "WEBP", lossless=True, exact=True)
    yield Kind("rgba.webp", webp, corners * share + 255 * (1 - share), EXACT + 1)
    grey = draw_grey("grey and alpha.png")
    la = Image.merge("LA", [picture(grey), picture(alpha)])
    seen = grey3(grey) * share + 255 * (1 - share)
    yield Kind("grey and alpha.png", encoded(la, "PNG"), seen, EXACT + 1)
    for name, form in {"palette.png": "PNG", "palette.gif": "GIF"}.items():
        corners = draw_corners(name)
        indexed = picture(np.array([[0, 1], [2, 3]], np.uint8))
        indexed.putpalette(corners.tobytes())
        seen = corners.copy()
        seen[1, 0] = 255
        yield Kind(name, encoded(indexed, form, transparency=2), seen)
    corners = draw_corners("half a palette.png")
    indexed = picture(np.array([[0, 1], [2, 3]], np.uint8))
    indexed.putpalette(corners.tobytes())
    png = encoded(indexed, "PNG", transparency=alpha.tobytes())
    yield Kind("half a palette.png", png, corners * share + 255 * (1 - share), EXACT + 1)


def tiffs() -> Iterator[Kind]:
    yield rgb("rgb.tif", "TIFF")
    yield rgb("lzw.tif", "TIFF", compression="tiff_lzw")
    yield rgb("jpeg inside.tif", "TIFF", LOSSY, compression="jpeg", quality=95)
    corners = draw_corners("cmyk.tif")
    yield Kind("cmyk.tif", encoded(picture(corners).convert("CMYK"), "TIFF"), corners)
    grey = draw_grey("16 bits.tif")
    deep = Image.fromarray(spread(grey.astype(np.uint16) * 257))
    yield Kind("16 bits.tif", encoded(deep, "TIFF"), grey3(grey))
    for name, white in {"float to 1.tif": 1, "float to 255.tif": 255}.items():
        grey = draw_grey(name)
        values = Image.fromarray(spread((grey / 255 * white).astype(np.float32)))
        yield Kind(name, encoded(values, "TIFF"), grey3(grey))
    bits = np.array([[0, 0], [255, 0]], np.uint8)
    fax = encoded(picture(bits).convert("1"), "TIFF", compression="group4")
    yield Kind("fax.tif", fax, grey3(bits))


def other_formats() -> Iterator[Kind]:
    for name, form in {
        "a.bmp": "BMP", "a.ppm": "PPM", "a.tga": "TGA", "a.pcx": "PCX", "a.sgi": "SGI",
        "a.jp2": "JPEG2000", "a.dds": "DDS",
    }.items():  # fmt: skip
        yield rgb(name, form)
    yield rgb("lossless.webp", "WEBP", lossless=True)
    yield rgb("lossy.webp", "WEBP", 2 * LOSSY, quality=95)
    yield rgb("png inside.jpg", "PNG")
    yield rgb("jpeg inside.png", "JPEG", LOSSY, quality=95)
    corners = draw_corners("a.gif", levels=6)
    yield Kind("a.gif", encoded(picture(corners).quantize(4), "GIF"), corners)
    grey = draw_grey("a.pgm")
    yield Kind("a.pgm", encoded(picture(grey), "PPM"), grey3(grey))
    for name, width, height in (("wide.png", 20000, 2), ("high.png", 2, 20000)):
        corners = draw_corners(name)
        yield Kind(name, encoded(picture(corners, width, height), "PNG"), corners)
    corners = draw_corners("wide.jpg")
    wide = encoded(picture(corners, 20000, 2), quality=95, subsampling=0)
    yield Kind("wide.jpg", wide, corners, LOSSY)
    one = draw_corners("1x1.png")[:1, :1]
    yield Kind("1x1.png", encoded(Image.fromarray(one), "PNG"), one.repeat(2, 0).repeat(2, 1))


def frames() -> Iterator[Kind]:
    """The first of several is what counts."""
    for name, form in {
        "moving.gif": "GIF", "moving.webp": "WEBP", "moving.png": "PNG", "pages.tif": "TIFF",
        "two.mpo": "MPO",
    }.items():  # fmt: skip
        options = {"quality": 95} if form == "MPO" else {"lossless": True}
        corners = draw_corners(name)
        later = [picture(draw_corners(name + later)) for later in "ab"]
        data = encoded(picture(corners), form, save_all=True, append_images=later, **options)
        yield Kind(name, data, corners, LOSSY if form == "MPO" else EXACT)


def names() -> Iterator[Kind]:
    for name in (
        "two words.jpg", "new\nline.jpg", "return\r.jpg", "tab\t.jpg", "quote'\".jpg", "50 %s.jpg",
        "comma, and; more.jpg", "-dash.jpg", "back\\slash.jpg", "雪.jpg", "\x1b[31mred.jpg",
        "UPPER.JPG", "no suffix", "photo.jpg.part", "x" * 251 + ".jpg",
        os.fsdecode(b"\xff\xfe not utf-8.jpg"), "deep/er/and deeper.jpg", "folder.jpg/inside.jpg",
    ):  # fmt: skip
        yield rgb(name, "JPEG", LOSSY, quality=95)


def links() -> Iterator[Kind]:
    corners = draw_corners("link.jpg")

    def link(path: Path) -> None:
        elsewhere = path.parents[1] / "elsewhere.jpg"
        elsewhere.write_bytes(jpeg(corners))
        path.symlink_to(elsewhere)

    yield Kind("link.jpg", link, corners, LOSSY)


def noise() -> Image.Image:
    """A picture of which no part can be missed."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))


def cut() -> Iterator[Kind]:
    for name, ending in {"no end.jpg": b"", "half an end.jpg": b"\xff"}.items():
        yield Kind(name, encoded(noise())[:-2] + ending, reason="truncated")
    for name, form in {
        "{}.jpg": "JPEG", "progressive {}.jpg": "JPEG", "{}.png": "PNG", "{}.tif": "TIFF",
        "{}.webp": "WEBP", "{}.bmp": "BMP", "{}.gif": "GIF",
    }.items():  # fmt: skip
        data = encoded(noise(), form, progressive=name.startswith("progressive"))
        said = "could not create decoder" if form == "WEBP" else "truncated"
        for quarter in (1, 2, 3):
            cut_off = data[: len(data) * quarter // 4]
            yield Kind(name.format(f"cut at {quarter} of 4"), cut_off, reason=said)


def damaged() -> Iterator[Kind]:
    data = encoded(noise())
    table = data.index(b"\xff\xc4")
    codes = b"\xff" * 16  # more than there can be
    broken = data[: table + 5] + codes + data[table + 21 :]
    yield Kind("huffman.jpg", broken, reason="broken")
    png = encoded(noise(), "PNG")
    middle = len(png) // 2
    flipped = bytes([png[middle] ^ 0xFF])
    yield Kind("flipped.png", png[:middle] + flipped + png[middle + 1 :], reason="broken")
    yield Kind("header sum.png", png[:29] + b"\0\0\0\0" + png[33:], reason="broken")
    yield Kind("magic alone.jpg", b"\xff\xd8\xff", reason="truncated")
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)
    yield Kind("loop.tif", loop, reason="not an image")
    yield Kind("no size.jpg", sized_jpeg(0, 0), reason="not an image")
    text = b"key\0\0" + zlib.compress(bytes(100 << 20))
    bomb = png[:33] + chunk(b"zTXt", text) + png[33:]
    yield Kind("text bomb.png", bomb, reason="Decompressed data too large")


def too_large() -> Iterator[Kind]:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    yield Kind("bomb.png", png + chunk(b"IEND", b""), reason="too large")
    gif = encoded(noise(), "GIF")
    wide = struct.pack("<HH", 50_000, 50_000)
    yield Kind("bomb.gif", gif[:6] + wide + gif[10:], reason="too large")
    yield Kind("bomb.jpg", sized_jpeg(60_000, 60_000), reason="too large")
    yield Kind("terabyte.jpg", terabyte, reason="too large")


def terabyte(path: Path) -> None:
    """Of zeros, which take no room on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


def no_photos() -> Iterator[Kind]:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name, data in {
        "1 text 雪.jpg": b"hello, I am a text\n" * 20,
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.jpg": pointer,
        "figure.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "paper.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
        "packed.png": gzip.compress(encoded(noise(), "PNG")),
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
        "film.jpg": b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(500),
        "all zeros.jpg": bytes(5000),
        "noise.jpg": np.random.default_rng(0).bytes(5000),
        os.fsdecode(b"\xff\xfe text.jpg"): b"hello",
        "new\nline, text.jpg": b"hello",
    }.items():
        yield Kind(name, data, reason="not an image")
    yield Kind("0 bytes.jpg", b"", reason="empty file")


def no_files() -> Iterator[Kind]:
    nothing, round_and_round = "No such file or directory", "Too many levels of symbolic links"
    yield Kind("dangling.jpg", lambda path: path.symlink_to("nowhere"), reason=nothing)
    yield Kind("loop.jpg", lambda path: path.symlink_to("loop.jpg"), reason=round_and_round)
    yield Kind("device.jpg", lambda path: path.symlink_to(os.devnull), reason="not a regular file")
    yield Kind("endless.jpg", lambda path: path.symlink_to("/dev/zero"), reason="not a regular")
    yield Kind("pipe.jpg", os.mkfifo, reason="not a regular file")
    yield Kind("socket.jpg", listen, reason="not a regular file")
    if os.geteuid() != 0:  # root may read everything
        yield Kind("locked.jpg", lock, reason="Permission denied")


def lock(path: Path) -> None:
    path.write_bytes(jpeg(draw_corners(path.name)))
    path.chmod(0)


def listen(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)  # the whole path might be too long for a socket


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    sum_of_it = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_of_it)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) values of 16 bits, which Pillow does not write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def sized_jpeg(width: int, height: int) -> bytes:
    """A JPEG that claims to have this size."""
    data = encoded(noise())
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
