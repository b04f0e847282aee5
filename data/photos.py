"""Photos on disk: which files of a folder or archive are photos, and any of them as upright RGB."""

import errno
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from config import UserError
from data.archives import unpack

# Pillow warns of odd but decodable files (a malformed EXIF block, a palette's transparency). Set
# once, since catch_warnings is not safe in decoding threads.
warnings.filterwarnings("ignore", module="PIL")

# Not all that Pillow knows: it would run Ghostscript on EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
SUFFIXES = {".mpo"} | {e for e, name in Image.registered_extensions().items() if name in FORMATS}
# Photos that are not decoded: they are named as unreadable, not passed over in silence.
RAW = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".pef", ".srw"}
FOREIGN = ({".heic", ".heif", ".hif", ".jxl", ".avif"} | RAW) - SUFFIXES
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "@Recycle", "#recycle"}  # of macOS and of a NAS
PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
MAX_FILE_BYTES = 1 << 30  # Pillow's limit of 179 million pixels takes less in any format
# Errors of a file; any other is the machine's (EIO, ESTALE, EMFILE) and may be gone next time.
FILE_ERRORS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class UnreadablePhoto(Exception):
    """The file is no photo that can be decoded completely; the message is a short reason."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a data set, in an order that is the same on every machine.

    root: the folder that holds the class folders, whose sorted names are `classes`
    paths: relative to root, with "/" between the parts, sorted. Bytes of a name that are not UTF-8
        are lone surrogates (`os.fsdecode`): write them with errors="surrogateescape".
    labels: (N,) int64, index into classes
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, mask: np.ndarray) -> "Photos":
        """The photos where the (N,) bool mask is true; the classes stay as they are."""
        paths = tuple(path for path, kept in zip(self.paths, mask, strict=True) if kept)
        return Photos(self.root, self.classes, paths, self.labels[mask])


def find_photos(path: Path, unpack_into: Path) -> Photos:
    """List the photos of a folder, or of an archive that is unpacked below unpack_into.

    It has a sub-folder per class; one alone is a wrapper and descended through. Class folders may
    be links, and have sub-folders. Hidden names are skipped, and files not named like an image.
    Raises UserError: fewer than two class folders, one without photos, or no access.
    """
    root = path if os.path.isdir(path) else unpack(path, unpack_into)
    _, names, _ = next(_walk(root))
    while len(names) == 1 and (inner := next(_walk(root / names[0]))[1]):
        root, names = root / names[0], inner
    if len(names) < 2:
        found = f"only one class, {names[0]!r}," if names else "no class folders"
        raise UserError(f"{found} in {str(path)!r}: sort photos into rain/1.jpg, snow/2.jpg, ...")
    if all(PARTS & set(re.split(r"[\W\d_]+", name.lower())) for name in names):
        raise UserError(
            f"{str(root)!r} is divided into {', '.join(names)}, not into classes: put all photos "
            "of a class into one folder, and they are split here"
        )
    paths = sorted(f"{name}/{photo}" for name in names for photo in _photos_below(root / name))
    owners = [path.split("/")[0] for path in paths]
    for name in sorted(set(names) - set(owners)):
        raise UserError(f"no photo (*.jpg, *.png, ...) in class folder {str(root / name)!r}")
    labels = np.array([names.index(owner) for owner in owners], np.int64)
    return Photos(root, tuple(names), tuple(paths), labels)


def _walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder with its folders and files, sorted and without hidden names."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename!r}: {error.strerror}")

    for folder, inner, files in os.walk(top, onerror=fail):
        for names in (inner, files):
            names[:] = sorted(n for n in names if n[0] != "." and n not in SYSTEM_FOLDERS)
        yield Path(folder), inner, files


def _photos_below(top: Path) -> Iterator[str]:
    for folder, inner, files in _walk(top):
        for link in filter(Path.is_symlink, map(folder.joinpath, inner)):
            raise UserError(f"{str(link)!r} is a link to a folder: only class folders may be links")
        prefix = "".join(f"{part}/" for part in folder.relative_to(top).parts)
        yield from (prefix + name for name in files if is_named_as_photo(name))


def is_named_as_photo(name: str) -> bool:
    """Whether a file's name ends as that of a photo, be it one that is not decoded here."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or suffix in FOREIGN


def open_rgb(path: Path, short_side: int) -> Image.Image:
    """The first frame of a photo as an upright RGB image, whatever format its name says.

    Transparency is laid over white, and values of 16 or 32 bits are scaled to 8. A JPEG is decoded
    at 1/2, 1/4 or 1/8 of its size where its shorter side keeps short_side (1 up) pixels or more.
    Raises UnreadablePhoto: missing, empty, not an image, too large, truncated or broken. OSError
    and MemoryError are the machine's, and say nothing about the photo.
    """
    return decode_rgb(read_photo(path), path.suffix, short_side)


def read_photo(path: Path) -> bytes:
    """The bytes of a photo's file; raises as open_rgb does."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePhoto("not a regular file")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise UnreadablePhoto("too large a file" if status.st_size else "empty file")
        return path.read_bytes()
    except OSError as error:
        if error.errno in FILE_ERRORS:
            raise UnreadablePhoto(error.strerror) from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def decode_rgb(data: bytes, suffix: str, short_side: int) -> Image.Image:
    """`open_rgb` of a file that has been read, and whose name ended in `suffix`."""
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    if is_jpeg and not _has_end(data):
        raise UnreadablePhoto("truncated")
    if suffix.lower() in FOREIGN and not is_jpeg:  # of RAW, Pillow would decode the thumbnail
        raise UnreadablePhoto(f"{suffix} is not decoded here: save it as JPEG")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.draft(None, (short_side, short_side))
        image.load()
        with suppress(Exception):  # a broken EXIF block, for which Pillow raises errors of any kind
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhoto("not an image, or broken in its first bytes") from error
    except Exception as error:  # Pillow's plug-ins raise errors of any kind on broken data
        bytes(1 << 28)  # MemoryError: some decoders say "broken" where memory is too little
        raise UnreadablePhoto(" ".join(str(error).split())[:120] or repr(error)) from error


def _has_end(jpeg: bytes) -> bool:
    """Whether an end marker follows the beginning of the first scan. Pillow finds what is cut off,
    but takes zeros, which a broken download has left, for the rest of the picture."""
    position = 2
    while jpeg[position : position + 1] == b"\xff" and jpeg[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return jpeg.find(b"\xff\xd9", position) >= 0


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # grey of 16 or 32 bits
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0).clip(0)
        white = max(values.max(), 1 if image.mode == "F" else 65535)
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
