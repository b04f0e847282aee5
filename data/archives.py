"""Unpack a zip or tar archive, without writing or reading anything outside the folder for it; and
folders of the cache that are made once."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import UserError, one_line
from data.files import atomic_folder, atomic_write, lock, open_regular

# Drawn BMP images pack to a twentieth at best; a bomb unpacks to a thousand times its size or more.
MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 100, 256 << 20


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) archive into a new folder under into, and return it. The
    same archive (path, size, time of change) is unpacked once, and again where files changed.
    Raises UserError: not an archive, encrypted, broken, leads out of the folder, a device or a
    symbolic link in a tar, two entries of one name, far larger than its packed size, a full
    disk."""
    if not os.path.isfile(archive):
        raise UserError(f"{str(archive)!r} does not exist, or is neither a folder nor an archive")
    try:
        status = archive.stat()
        key = ascii((str(archive.resolve()), status.st_size, status.st_mtime_ns)).encode()
        name = f"{archive.name.split('.')[0][:40]}-{hashlib.sha256(key).hexdigest()[:12]}"
        return made_once(into / name, lambda folder: _extract(archive, folder))
    except Exception as error:  # the decoders raise errors of many kinds on data that are broken
        raise UserError(
            f"{str(archive)!r} cannot be unpacked as tar or zip ({one_line(error, 1000)}): "
            "get it again, or unpack it by hand and give the folder"
        ) from error


def _extract(archive: Path, folder: Path) -> None:
    files, left = 0, max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * archive.stat().st_size)
    is_tar = tarfile.is_tarfile(archive)
    open_archive: Any = tarfile.open if is_tar else zipfile.ZipFile
    with open_archive(archive) as packed:
        packed.extraction_filter = tarfile.data_filter  # refuses devices, and what would lead out
        for entry in tqdm(packed if is_tar else packed.infolist(), "unpacking", disable=None):
            left -= 512 + (entry.size if is_tar else entry.file_size)
            if left < 0:
                raise ValueError("far larger than its packed size: these are no photos")
            if is_tar and entry.issym():  # they trick the filter until 3.11.12, 3.12.10 and 3.13.3
                raise ValueError(f"{entry.name!r} in it is a symbolic link")
            if not is_tar:  # ZipFile drops what would lead out from names, and makes files of links
                entry.filename = entry.filename.replace("\\", "/")  # as tools of Windows write
            packed.extract(entry, folder)
            files += not (entry.isdir() if is_tar else entry.is_dir())
        end = packed.fileobj.read(1 << 20) if is_tar else b"\0"
        if not end or end.strip(b"\0"):  # tarfile takes any damaged header for the end
            raise ValueError("truncated, or damaged in a header")
    if files != sum(len(names) for _, _, names in os.walk(folder)):
        raise ValueError("two of its entries have the same name")


def made_once(folder: Path, make: Callable[[Path], None], key: str = "") -> Path:
    """A folder of files that `make` fills, once for all processes, and again for another key or
    where one of the files is missing or has another size or time. Raises what `make` raises."""
    files, manifest = folder / "files", folder / "manifest"
    with lock(folder.parent):
        with suppress(FileNotFoundError), open_regular(manifest) as file:
            if file.read() == key.encode() + _list_files(files):
                return files
        with atomic_folder(folder) as new:
            (new / files.name).mkdir()
            make(new / files.name)
            atomic_write(new / manifest.name, key.encode() + _list_files(new / files.name))
    return files


def _list_files(folder: Path) -> bytes:
    lines = []
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            status = os.lstat(path)
            about = status.st_mode, status.st_size, status.st_mtime_ns
            lines.append(f"{os.path.relpath(path, folder)!a} {about}\n")
    return "".join(sorted(lines)).encode()
