"""Unpack a zip or tar archive so that nothing can be written outside the folder meant for it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from config import UserError
from data.locks import only_one

# Photos are compressed already and pack to about their own size; drawn BMP or TIFF images pack to a
# twentieth at best. A bomb unpacks to a thousand times its size (deflate) or far more (bzip2, xz).
MAX_EXPANSION = 100
# Where the archive is so small that its ratio says nothing: harmless on any disk.
ALWAYS_ALLOWED_BYTES = 256 << 20
# No photo is smaller than this in an archive, so more entries than that are no photos.
MIN_BYTES_PER_ENTRY = 32
ALWAYS_ALLOWED_ENTRIES = 10_000
# However large the archive: many a disk has room for no more files.
MAX_ENTRIES = 2_000_000

# Deeper than any data set, and shallow enough for shutil.rmtree, which recurses.
MAX_DEPTH = 64
MAX_LINKS = 8  # one after the other, until there is a file

_CHUNK = 1 << 20
Opener = Callable[[], IO[bytes]]


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a zip or tar (.gz, .bz2, .xz) archive into a new folder under into, and return it.

    The format is told by content. Only folders and regular files are made, under names that are
    relative and without "..", so nothing can be written elsewhere; a link inside the archive
    becomes the file that it leads to, and one to a folder is left out. The folder appears when it
    is complete, and the same archive (path, size, time of change) is unpacked once. Two processes
    may ask for it at once.

    Raises UserError: not an archive, encrypted, broken, a path or link that leads out, a device
    file, far larger than its packed size, too many entries, or no room on the disk.
    """
    if not archive.is_file():
        raise UserError(f"{str(archive)!r} is neither a folder nor a zip or tar archive")
    status = archive.stat()
    identity = repr((str(archive.resolve()), status.st_size, status.st_mtime_ns))
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    target = into / f"{archive.name.split('.')[0][:40]}-{digest}"
    unfinished = into / ".unpacking"
    try:
        into.mkdir(parents=True, exist_ok=True)
        with only_one(into / ".unpacking.lock"):
            _remove(unfinished)  # left by a process that was killed
            if not target.exists():
                try:
                    _unpack(archive, unfinished)
                    unfinished.rename(target)
                finally:
                    _remove(unfinished)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot unpack {str(archive)!r} into {str(into)!r}: {why}") from error
    return target


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive: a "folder", a "file", or a "link" to another path in the archive."""

    name: str
    kind: str
    size: int
    open: Opener
    leads_to: str = ""


def _unpack(archive: Path, folder: Path) -> None:
    try:
        folder.mkdir()
        with archive.open("rb") as file:
            zipped = file.read(4) in (b"PK\3\4", b"PK\5\6", b"PK\7\x08")
        entries = _zip_entries if zipped else _tar_entries
        links = _write_entries(entries(archive, folder), folder, archive.stat().st_size)
        for name, source in links.items():
            for _ in range(MAX_LINKS):
                if (folder / source).is_file():
                    break
                source = links.get(source, source)
            if (folder / source).is_file() and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / source, folder / name)
    except UserError as error:
        raise UserError(f"{str(archive)!r}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; errors in compressed data carry no number
        # The decoders raise errors of many kinds on data that are broken.
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{str(archive)!r} is truncated, broken, or no zip or tar archive ({why}): "
            "get it again, or unpack it by hand and give the folder"
        ) from error


def _write_entries(entries: Iterator[_Entry], folder: Path, packed: int) -> dict[str, str]:
    """Write folders and files below folder; return the links: name to the name that it leads to."""
    links: dict[str, str] = {}
    total = 0
    bar = tqdm(entries, "unpacking", unit=" files", leave=False, disable=None)
    for count, entry in enumerate(bar, start=1):
        total += entry.size
        _check_expansion(total, count, packed)
        name = _inside(entry.name)
        if entry.kind == "link":
            links[name] = _inside(entry.leads_to)
        elif entry.kind == "folder":
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            _check_room(folder, entry.size)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, (folder / name).open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
    return links


def _check_expansion(unpacked: int, entries: int, packed: int) -> None:
    if unpacked > max(ALWAYS_ALLOWED_BYTES, packed * MAX_EXPANSION):
        raise UserError(f"refused: {packed} bytes that unpack to {unpacked} or more are no photos")
    if entries > max(ALWAYS_ALLOWED_ENTRIES, packed // MIN_BYTES_PER_ENTRY):
        raise UserError(f"refused: {packed} bytes with {entries} entries or more are no photos")
    if entries > MAX_ENTRIES:
        raise UserError(
            f"refused: more than {MAX_ENTRIES:,} entries; unpack it by hand and give the folder"
        )


def _inside(name: str) -> str:
    """The name as a plain relative path, one that stays inside a folder that it is joined to."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise UserError(f"refused: its entry {name!r} leads out of the folder")
    if len(parts) > MAX_DEPTH:
        raise UserError(f"refused: an entry lies {len(parts)} folders deep")
    return "/".join(parts)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"no room: {needed} bytes to unpack, {free} free in {str(folder.parent)!r}")


def _zip_entries(archive: Path, folder: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as packed:
        infos = packed.infolist()
        unpacked = sum(info.file_size for info in infos)
        _check_expansion(unpacked, len(infos), archive.stat().st_size)
        _check_room(folder, unpacked)
        for info in infos:
            if info.flag_bits & 1:
                raise UserError("it is encrypted: unpack it by hand and give the folder")
            name = info.filename.replace("\\", "/")  # written so by some tools on Windows
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or name.endswith("/"):
                yield _Entry(name, "folder", 0, io.BytesIO)
            elif kind == stat.S_IFLNK:
                with packed.open(info) as text:
                    to = _link(name, os.fsdecode(text.read(4096)))
                yield _Entry(name, "link", 0, io.BytesIO, to)
            elif kind in (0, stat.S_IFREG):
                yield _Entry(name, "file", info.file_size, partial(packed.open, info))
            else:
                raise UserError(f"refused: its entry {name!r} is a device or the like")


def _tar_entries(archive: Path, folder: Path) -> Iterator[_Entry]:
    size = archive.stat().st_size
    _check_room(folder, size)  # how much it unpacks to is not known before
    with _decompressed(archive) as stream:
        bounded = _Bounded(stream, size)
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r|") as packed:
            while (member := packed.next()) is not None:
                packed.members = []  # type: ignore[attr-defined]  # or it keeps them all
                if member.isdir():
                    yield _Entry(member.name, "folder", 0, io.BytesIO)
                elif member.issym():
                    to = _link(member.name, member.linkname)
                    yield _Entry(member.name, "link", 0, io.BytesIO, to)
                elif member.islnk():
                    yield _Entry(member.name, "link", 0, io.BytesIO, member.linkname)
                elif member.isreg():
                    opener = partial(packed.extractfile, member)
                    yield _Entry(member.name, "file", member.size, cast("Opener", opener))
                else:
                    raise UserError(f"refused: its entry {member.name!r} is a device or the like")
            _check_end(cast("IO[bytes]", packed.fileobj))


def _link(name: str, to: str) -> str:
    """Where in the archive a symbolic link leads; a path with ".." in it if it leads out."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), to))


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(10)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(archive))
    if start.startswith(b"BZh") and start.endswith(b"1AY&SY"):
        return cast("IO[bytes]", bz2.open(archive))
    if start.startswith(b"\xfd7zXZ\0"):
        return cast("IO[bytes]", lzma.open(archive))
    return archive.open("rb")


class _Bounded:
    """A stream that refuses to yield far more than its packed size: headers can be bombs too."""

    def __init__(self, stream: IO[bytes], packed: int) -> None:
        self.stream, self.packed, self.unpacked = stream, packed, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.unpacked += len(data)
        _check_expansion(self.unpacked, 0, self.packed)
        return data


def _check_end(stream: IO[bytes]) -> None:
    """Read to the end, where gzip checks its sum. To tarfile any bad header is the end."""
    padding = 0
    while block := stream.read(_CHUNK):
        if block.strip(b"\0"):
            raise tarfile.ReadError("bad header")
        padding += len(block)
    if not padding:
        raise tarfile.ReadError("no end mark")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
