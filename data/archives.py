"""Unpack a zip or tar archive, without writing or reading anything outside the folder for it."""

import hashlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import UserError
from data.files import atomic_folder, lock

# Photos are compressed already, and drawn BMP images pack to a twentieth at best; a bomb unpacks to
# a thousand times its size or more. 256 MB are harmless on any disk.
MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 100, 256 << 20
LISTING = ".unpacked-files"  # names and sizes


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) archive into a new folder under into, and return it.

    The folder appears when it is complete. The same archive (path, size, time of change) is
    unpacked once, and again where files have gone missing since. Raises UserError: not an archive,
    encrypted, broken, leads out of the folder, a symbolic link, a device, two entries of one name,
    far larger than its packed size, no room on the disk.
    """
    if not os.path.isfile(archive):
        raise UserError(f"{str(archive)!r} does not exist, or is neither a folder nor an archive")
    try:
        status = archive.stat()
        key = ascii((str(archive.resolve()), status.st_size, status.st_mtime_ns)).encode()
        target = into / f"{archive.name.split('.')[0][:40]}-{hashlib.sha256(key).hexdigest()[:12]}"
        listing = target / LISTING
        into.mkdir(parents=True, exist_ok=True)
        with lock(into):
            if not listing.is_file() or listing.read_bytes() != _list_files(target):
                with atomic_folder(target) as folder, archive.open("rb") as file:
                    is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
                    files = sum((_extract_zip if is_zip else _extract_tar)(archive, folder))
                    found = _list_files(folder)
                    if found.count(b"\n") != files:
                        raise ValueError("two of its entries have the same name")
                    (folder / LISTING).write_bytes(found)
    except Exception as error:  # the decoders raise errors of many kinds on data that are broken
        raise UserError(
            f"{str(archive)!r} cannot be unpacked ({' '.join(str(error).split())[:200]}): "
            "get it again, or unpack it by hand and give the folder"
        ) from error
    return target


def _list_files(folder: Path) -> bytes:
    """A line for each file, with its name and size."""
    top = str(folder)
    paths = sorted(os.path.join(place, name) for place, _, names in os.walk(top) for name in names)
    found = (path for path in paths if not path.endswith(LISTING))
    lines = (f"{path[len(top) :]!a} {os.path.getsize(path)}\n" for path in found)
    return "".join(lines).encode()


def _bounded(entries: Iterable[Any], archive: Path) -> Iterator[Any]:
    """The entries as long as they unpack to no more than photos can; 512 bytes each at least."""
    left = max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * archive.stat().st_size)
    for entry in tqdm(entries, "unpacking", unit=" files", leave=False, disable=None):
        left -= 512 + (entry.size if isinstance(entry, tarfile.TarInfo) else entry.file_size)
        if left < 0:
            raise ValueError("far larger than its packed size: these are no photos")
        yield entry


def _extract_zip(archive: Path, folder: Path) -> Iterator[bool]:
    """For each entry whether it was a file. ZipFile drops what would lead out from names."""
    with zipfile.ZipFile(archive) as packed:
        for info in _bounded(packed.infolist(), archive):
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{info.filename!r} in it is a link or a device")
            info.filename = info.filename.replace("\\", "/")  # so written by tools of Windows
            packed.extract(info, folder)
            yield not info.is_dir()


def _extract_tar(archive: Path, folder: Path) -> Iterator[bool]:
    """For each entry whether it was a file. The "data" filter refuses what would lead out, except
    that symbolic links can trick it until Python 3.11.12, 3.12.10 and 3.13.3: there are none."""
    if not tarfile.is_tarfile(archive):
        raise ValueError("no zip or tar archive, or the beginning of one")
    with tarfile.open(archive) as packed:
        for member in _bounded(packed, archive):
            if member.issym():
                raise ValueError(f"{member.name!r} in it is a symbolic link")
            packed.extract(member, folder, filter="data")
            yield not member.isdir()
        end = packed.fileobj.read(1 << 20)  # tarfile takes any damaged header for the end
        if not end or end.strip(b"\0"):
            raise tarfile.ReadError("truncated, or damaged in a header")
