"""Photos on disk: which files of a folder or archive are photos, and any of them as upright RGB."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from config import UserError
from data.archives import unpack

# Pillow remarks on odd but decodable files (a malformed EXIF block, a palette's transparency), and
# UnreadablePhoto says what matters. Set once, since catch_warnings is not safe in decoding threads.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").addHandler(logging.NullHandler())

Image.init()
# Pillow would run Ghostscript on the first of these, and names the others without decoding them.
NOT_PHOTOS = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# The two common formats come first: they are then recognised without asking every other plug-in.
FORMATS = ("JPEG", "PNG", *(name for name in Image.ID if name not in {"JPEG", "PNG"} | NOT_PHOTOS))
SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
)
# Photos that Pillow does not decode: they are named as unreadable, not passed over in silence.
FOREIGN = {
    ".heic", ".heif", ".hif", ".jxl", ".avif",
    ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".pef", ".srw",
} - SUFFIXES  # fmt: skip
PHOTO_SUFFIXES = SUFFIXES | FOREIGN
# Folders of these names alone are parts of somebody's split.
PART_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
# The largest photo that is let through (Pillow's limit of 89 million pixels) is smaller than this
# in any format; the limit keeps a file of many gigabytes from being read into memory.
MAX_FILE_BYTES = 1 << 30

LAYOUT = "expected one sub-folder per class, each with photos in it: rain/1.jpg, snow/2.jpg, ..."


class UnreadablePhoto(Exception):
    """The file is no photo that can be decoded completely; the message is a short reason."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a data set, in an order that is the same on every machine.

    root: the folder that holds the class folders
    classes: sorted class names, which are the names of the class folders
    paths: photo paths relative to root, with "/" between the parts, sorted. Bytes of a name that
        are not UTF-8 stand in them as lone surrogates (`os.fsdecode`): write such text with
        errors="surrogateescape", print it with repr.
    labels: (N,) int64, index into classes
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, mask: np.ndarray) -> Photos:
        """The photos where the (N,) bool mask is true; the classes stay as they are."""
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != self.labels.shape:
            raise ValueError(f"mask has shape {mask.shape}, expected {self.labels.shape}")
        paths = tuple(path for path, kept in zip(self.paths, mask, strict=True) if kept)
        return Photos(self.root, self.classes, paths, self.labels[mask])


def find_photos(path: Path, unpack_into: Path) -> Photos:
    """List the photos of a folder with one sub-folder per class, or of an archive of one.

    Photos may lie deeper inside a class folder. A folder with nothing but one sub-folder in it is
    taken as a wrapper and descended through. Hidden files and folders are skipped. Whatever is no
    folder and has a name that ends like an image's is listed unopened, so that listing is quick;
    pipes, sockets and links that lead nowhere too, so that decoding reports them by name. A file
    with another name is a photo when Pillow recognises its first bytes, and else skipped.

    path: the folder, or a zip or tar archive, which is unpacked into a folder under unpack_into
    Raises UserError: nothing there, no class folders, fewer than two, or one without a photo.
    """
    if not os.path.exists(path):
        raise UserError(f"{str(path)!r} does not exist: give a folder or an archive of photos")
    root = path if path.is_dir() else unpack(path, unpack_into)
    root, class_folders = _descend_wrappers(root)
    if not class_folders:
        raise UserError(f"no class folders in {str(path)!r}: {LAYOUT}")
    if len(class_folders) > 1 and {name.lower() for name in class_folders} <= PART_NAMES:
        raise UserError(
            f"{str(root)!r} is divided into {', '.join(class_folders)}, not into classes: put all "
            "photos of a class into one folder, and they are split here"
        )
    # A link from one class folder to another, or to one above, must not lend photos a wrong class.
    elsewhere = {_identity(folder) for folder in (root, *root.resolve().parents)}
    elsewhere |= {_identity(root / name) for name in class_folders}
    found: dict[str, int] = {}
    for label, name in enumerate(class_folders):
        in_class = [f"{name}/{photo}" for photo in _photos_below(root / name, elsewhere)]
        if not in_class:
            raise UserError(
                f"class folder {name!r} in {str(root)!r} holds no photo: "
                "put photos into it, or remove it if it is no class"
            )
        found.update((photo, label) for photo in in_class)
    if len(class_folders) < 2:
        raise UserError(
            f"only one class, {class_folders[0]!r}, in {str(path)!r}; at least two are needed: "
            + LAYOUT
        )
    paths = tuple(sorted(found))
    labels = np.array([found[photo] for photo in paths], dtype=np.int64)
    return Photos(root, tuple(class_folders), paths, labels)


def _descend_wrappers(root: Path) -> tuple[Path, list[str]]:
    """Descend while there is one folder alone; return the class folders' parent and their names."""
    folders = _folders_in(root)
    while len(folders) == 1:
        inner = _folders_in(root / folders[0])
        if not inner:
            break
        root, folders = root / folders[0], inner
    return root, folders


def _folders_in(folder: Path) -> list[str]:
    names = (entry.name for entry in _entries(str(folder)) if _is(entry, "dir"))
    return sorted(name for name in names if name != "__MACOSX")


def _photos_below(top: Path, elsewhere: set[tuple[int, int]]) -> Iterator[str]:
    """Paths, relative to top, of all photos in it. Links are followed, each folder is read once."""
    seen = elsewhere - {_identity(top)}
    pending = [""]
    while pending:
        prefix = pending.pop()
        folder = os.path.join(top, prefix)
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        inner = []
        for entry in _entries(folder):
            if _is(entry, "dir"):
                inner.append(f"{prefix}{entry.name}/")
            elif _is_photo(entry):
                yield prefix + entry.name
        pending += sorted(inner, reverse=True)


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read folder {folder!r}: {error.strerror}") from error


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    """Whether the entry, or what it links to, is a "dir" or a regular "file"."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def is_named_as_photo(name: str) -> bool:
    """Whether a file's name ends as that of a photo, be it one that is not decoded here."""
    return os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES


def _is_photo(entry: os.DirEntry[str]) -> bool:
    if is_named_as_photo(entry.name):
        return True
    if not _is(entry, "file"):
        return False
    try:
        with Image.open(entry.path, formats=FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # a photo by its header: open_rgb says that it is too large
    except Exception:  # Pillow's plug-ins raise errors of any kind on bytes that are not theirs
        return False


def open_rgb(path: Path, short_side: int) -> Image.Image:
    """Decode a photo to an upright RGB image, whatever its name says about its format.

    EXIF orientation is applied, transparency is laid over white, 16-bit and float values are scaled
    to 8 bits, and of several frames the first is taken. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size where that leaves the shorter side with short_side pixels or more; nothing else is
    resized. Safe to call from several threads.

    short_side: pixels, at least 1
    Raises UnreadablePhoto: missing, empty, not an image, too large, truncated or broken.
    """
    return decode_rgb(read_photo(path), path.suffix, short_side)


def decode_rgb(data: bytes, suffix: str, short_side: int) -> Image.Image:
    """`open_rgb` of a file that has been read, and whose name ended in `suffix`."""
    try:
        if data.startswith(b"\xff\xd8\xff") and not _has_end(data):
            raise UnreadablePhoto("truncated")
        image = _decode(data, short_side)
        if image.format == "TIFF" and suffix.lower() in FOREIGN:
            raise UnreadablePhoto(f"{suffix} holds no more than a preview: save it as JPEG")
        with suppress(Exception):  # a broken EXIF block, for which Pillow raises errors of any kind
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        image.info.clear()
        return image
    except UnreadablePhoto:
        raise
    except UnidentifiedImageError as error:
        if suffix.lower() in FOREIGN:
            raise UnreadablePhoto(
                f"{suffix.lower()} is not decoded here: save it as JPEG"
            ) from error
        raise UnreadablePhoto("not an image, or broken in its first bytes") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePhoto("too large: " + _one_line(error)) from error
    except Exception as error:  # Pillow's plug-ins raise errors of any kind on broken data
        raise UnreadablePhoto(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:120] or type(error).__name__


def read_photo(path: Path) -> bytes:
    """The bytes of a photo's file. Raises UnreadablePhoto: missing, empty or too large, no regular
    file, or not to be read."""
    try:
        if path.exists() and not path.is_file():
            raise UnreadablePhoto("not a regular file")
        size = path.stat().st_size
        if size == 0:
            raise UnreadablePhoto("empty file")
        if size > MAX_FILE_BYTES:
            raise UnreadablePhoto(f"too large: {size} bytes, at most {MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except UnreadablePhoto:
        raise
    except Exception as error:  # of the disk, of a name that none can have, of too little memory
        raise UnreadablePhoto(_one_line(error)) from error


def _decode(data: bytes, short_side: int) -> Image.Image:
    """The first frame in its own mode; a JPEG reduced as in open_rgb."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadablePhoto(f"too large: {width}x{height} pixels, at most {limit} are decoded")
    image.draft(None, (short_side, short_side))
    image.load()
    return image


def _has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the beginning of the first scan. Where there is none, Pillow
    may take what a broken download has left, zeros, for the rest of the picture."""
    position = 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return jpeg.find(b"\xff\xd9", position) >= 0


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, (H, W) uint16, int32 or float32, as (H, W) uint8.

    White is 65535 for integers, and for floats the least of 1, 255 and 65535 that holds them all.
    Values that fit none of these, or are negative, are scaled from their own least and greatest.
    """
    whites = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    black, white = 0.0, next((top for top in whites if high <= top), high)
    if low < 0 or high > whites[-1]:
        black, white = low, high
    with np.errstate(all="ignore"):
        scaled = (values - black) * (255 / max(white - black, 1e-30))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)
