"""Photos on disk: which files are photos, and any of them as upright RGB."""

import io
import os
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from config import one_line
from data.files import open_regular

# Pillow warns of odd but decodable files. Set once: catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module="PIL")
Image.MAX_IMAGE_PIXELS = 1 << 27  # Pillow refuses twice as many; phones take 200 million

# Not all that Pillow knows: it would run Ghostscript on EPS.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA"]
if find_spec("pillow_heif"):  # not needed otherwise
    import_module("pillow_heif").register_heif_opener()
    FORMATS += ["HEIF"]
SUFFIXES = {".mpo"} | {e for e, name in Image.registered_extensions().items() if name in FORMATS}
# Reported as unreadable, not decoded: of a RAW file, Pillow would read only the thumbnail.
RAW = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".pef", ".srw"}
HEIF = {".heic", ".heif", ".hif"}
FOREIGN = ({".jxl", ".avif"} | HEIF | RAW) - SUFFIXES


class UnreadablePhoto(Exception):
    """The file is not a photo, or cannot be decoded completely; the message is a short reason."""


def is_named_as_photo(name: str) -> bool:
    """Whether a file has the suffix of a photo, including formats that are not decoded here."""
    return os.path.splitext(name)[1].lower() in SUFFIXES | FOREIGN


def open_rgb(path: Path, short_side: int) -> Image.Image:
    """The first frame of a photo as an upright RGB image, whatever format its name says.
    Transparency is laid over white; 16 and 32 bits are scaled to 8. A JPEG is decoded at 1/2, 1/4
    or 1/8 of its size where its shorter side keeps short_side (1 up) pixels or more. Raises
    UnreadablePhoto for faults of the photo, OSError and MemoryError for the machine's."""
    return decode_rgb(read_photo(path), path.suffix, short_side)


def read_photo(path: Path) -> bytes:
    """The bytes of a photo's file; raises as open_rgb does."""
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError as error:  # any other OSError may be temporary
        raise UnreadablePhoto(error.strerror) from error


def decode_rgb(data: bytes, suffix: str, short_side: int) -> Image.Image:
    """`open_rgb` of a file that has been read, and whose name ended in `suffix`."""
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    cut = data.startswith(b"\x89PNG") and b"IEND" not in data
    if cut or (is_jpeg and not _has_end(data)):
        raise UnreadablePhoto("truncated")
    if suffix.lower() in FOREIGN and not is_jpeg:
        how = "pip install pillow-heif" if suffix.lower() in HEIF else "save it as JPEG"
        raise UnreadablePhoto(f"{suffix} is not decoded here: {how}")
    needed = 1 << 28
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        needed = max(needed, 8 * image.width * image.height)
        image.draft(None, (short_side, short_side))
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # Pillow can raise anything on a broken EXIF block
            if isinstance(error, MemoryError):
                raise
        return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhoto("not an image, or a corrupt header") from error
    except Exception as error:  # Pillow's plug-ins can raise anything on broken data
        bytes(needed)  # MemoryError: some decoders say "broken" where memory is too little
        raise UnreadablePhoto(one_line(error)) from error


def _has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the beginning of the first scan. Pillow detects truncation, but
    decodes zeros, which a broken download may leave at the end, as the rest of the picture."""
    position = 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1 : position + 2] != b"\xda":
        fill = jpeg[position + 1 : position + 2] == b"\xff"
        position += 1 if fill else 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return jpeg.find(b"\xff\xd9", position) >= 0


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16- or 32-bit greyscale
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
        white = max(values.max(), 1 if image.mode == "F" else 65535)
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
