"""Photos on disk: which files of a folder or archive are photos, and any of them as upright RGB."""

import io
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from config import UserError
from data.files import open_regular

# Pillow warns of odd but decodable files. Set once: catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module="PIL")

# Not all that Pillow knows: it would run Ghostscript on EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
SUFFIXES = {".mpo"} | {e for e, name in Image.registered_extensions().items() if name in FORMATS}
# Photos that are not decoded are reported as unreadable. Of RAW, Pillow would take the thumbnail.
RAW = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".pef", ".srw"}
FOREIGN = ({".heic", ".heif", ".hif", ".jxl", ".avif"} | RAW) - SUFFIXES
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "@Recycle", "#recycle"}  # of macOS and of a NAS
PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


class UnreadablePhoto(Exception):
    """The file is no photo that can be decoded completely; the message is a short reason."""


@dataclass(frozen=True, eq=False)
class Photos:
    """The photos of a data set, in an order that is the same on every machine."""

    root: Path  # the folder that holds the class folders
    classes: tuple[str, ...]  # their names, sorted; surrogates stand for bytes that are not UTF-8
    paths: tuple[str, ...]  # relative to root, with "/" between the parts, sorted
    labels: np.ndarray  # (N,) int64, index into classes

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, mask: np.ndarray) -> "Photos":
        """The photos where the (N,) bool mask is true; the classes stay as they are."""
        paths = tuple(path for path, kept in zip(self.paths, mask, strict=True) if kept)
        return Photos(self.root, self.classes, paths, self.labels[mask])


def find_photos(path: Path, unpack_into: Path) -> Photos:
    """List the photos of a folder, or of an archive that is unpacked below unpack_into. It has a
    sub-folder per class, which may be a link. One alone is a wrapper: its own are used. Raises
    UserError: fewer than two class folders, one without photos, or no access."""
    root = path
    if not os.path.isdir(path):
        from data.archives import unpack  # rarely needed

        root = unpack(path, unpack_into)
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
    paths = sorted(path for name in names for path in _photos_below(root, name))
    classes = [path.split("/")[0] for path in paths]
    for name in sorted(set(names) - set(classes)):
        raise UserError(f"no photo (*.jpg, *.png, ...) in class folder {str(root / name)!r}")
    labels = np.array([names.index(name) for name in classes], np.int64)
    return Photos(root, tuple(names), tuple(paths), labels)


def _walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder with its folders and files, sorted and without hidden names."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename!r}: {error.strerror}")

    for folder, inner, files in os.walk(top, onerror=fail):
        for names in (inner, files):
            names[:] = sorted(n for n in names if n[0] != "." and n not in SYSTEM_FOLDERS)
        yield Path(folder), inner, files


def _photos_below(root: Path, name: str) -> Iterator[str]:
    for folder, inner, files in _walk(root / name):
        for link in filter(Path.is_symlink, map(folder.joinpath, inner)):
            raise UserError(f"{str(link)!r} is a link to a folder: only class folders may be links")
        inside = folder.relative_to(root).as_posix()
        yield from (f"{inside}/{file}" for file in files if is_named_as_photo(file))


def is_named_as_photo(name: str) -> bool:
    """Whether a file's name ends as that of a photo, be it one that is not decoded here."""
    return os.path.splitext(name)[1].lower() in SUFFIXES | FOREIGN


def open_rgb(path: Path, short_side: int) -> Image.Image:
    """The first frame of a photo as an upright RGB image, whatever format its name says.

    Transparency is laid over white; 16 and 32 bits are scaled to 8. A JPEG is decoded at 1/2, 1/4
    or 1/8 of its size where its shorter side keeps short_side (1 up) pixels or more.
    Raises UnreadablePhoto for faults of the photo, OSError and MemoryError for the machine's.
    """
    return decode_rgb(read_photo(path), path.suffix, short_side)


def read_photo(path: Path) -> bytes:
    """The bytes of a photo's file; raises as open_rgb does."""
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError as error:  # all others may be gone the next time
        raise UnreadablePhoto(error.strerror) from error


def decode_rgb(data: bytes, suffix: str, short_side: int) -> Image.Image:
    """`open_rgb` of a file that has been read, and whose name ended in `suffix`."""
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    if is_jpeg and not _has_end(data):
        raise UnreadablePhoto("truncated")
    if suffix.lower() in FOREIGN and not is_jpeg:
        raise UnreadablePhoto(f"{suffix} is not decoded here: save it as JPEG")
    needed = 1 << 28
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        needed = max(needed, 8 * image.width * image.height)
        image.draft(None, (short_side, short_side))
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except MemoryError:
            raise
        except Exception:  # a broken EXIF block, for which Pillow raises errors of any kind
            pass
        return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhoto("not an image, or broken in its first bytes") from error
    except Exception as error:  # Pillow's plug-ins raise errors of any kind on broken data
        bytes(needed)  # MemoryError: some decoders say "broken" where memory is too little
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
