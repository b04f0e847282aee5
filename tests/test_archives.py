import io
import os
import shutil
import tarfile
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from config import UserError
from data import layouts as archives
from data.layouts import unpack

FILES = {"rain/1.jpg": b"one", "rain/deep/2.jpg": b"", "snow/é 3.jpg": b"three" * 9999}
TARS = ("w:", "w:gz", "w:bz2", "w:xz")


def write(path, files, mode="zip", odd=()):
    """An archive of files, and of odd entries of a tar: name, type, and where it links to."""
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in {"empty/": b"", **files}.items():
                packed.writestr(name, data)
        return path
    with tarfile.open(path, mode) as packed:
        for name, data in files.items():
            (member := tarfile.TarInfo(name)).size = len(data)
            packed.addfile(member, io.BytesIO(data))
        for name, kind, to in odd:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            packed.addfile(member)
    return path


def contents(folder):
    paths = filter(Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refused(tmp_path, archive, said="cannot be unpacked"):
    """The archive is refused with these words in one line, and nothing is left of it."""
    with pytest.raises(UserError, match=f"^.*{said}.*$"):
        unpack(archive, tmp_path / "deep" / "into")
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["into", ".lock"]


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_archives_are_unpacked_whatever_their_name(tmp_path, mode):
    # Windows writes zips with backslashes; the names in a tar need not be unicode.
    odd = "rain\\ww.jpg" if mode == "zip" else os.fsdecode(b"rain/\xff\xfe.jpg")
    hard = [("snow/link.jpg", tarfile.LNKTYPE, "rain/1.jpg")]
    files = FILES | {odd: b"4", "./snow//2.jpg": b"2"}
    archive = write(tmp_path / os.fsdecode(b"\xff.zip.tar"), files, mode, hard)
    expected = FILES | {odd: b"4", "snow/2.jpg": b"2", "snow/link.jpg": b"one"}
    if mode == "zip":  # of Linux, which does not say that a name is UTF-8, and of DOS, in cp437
        coded = archive.read_bytes().replace(b"ww", "é".encode())
        archive.write_bytes(coded.replace(b"//2", b"//\x81"))
        expected = FILES | {"rain/é.jpg": b"4", "snow/ü.jpg": b"2"}
    assert contents(unpack(archive, tmp_path / "new" / "into")) == expected


def test_an_archive_is_unpacked_once_and_anew_where_it_or_its_files_change(tmp_path):
    archive = write(tmp_path / "[photos].zip", FILES)
    folder = unpack(archive, tmp_path)
    inode = folder.stat().st_ino
    assert unpack(archive, tmp_path) == folder
    assert folder.stat().st_ino == inode
    first = folder / "rain" / "1.jpg"
    for change in (  # by a cleaner of disks, and by others
        partial(first.write_bytes, b"two"),
        partial(first.rename, folder / "snow" / "1.jpg"),
        partial(shutil.rmtree, folder / "rain" / "deep"),
        partial((folder / "2.jpg").symlink_to, first),
        (folder.parent / "manifest").unlink,
    ):
        change()
        assert unpack(archive, tmp_path) == folder
        assert contents(folder) == FILES
    earlier = archive.stat()
    write(archive, {**FILES, "rain/1.jpg": b"two"})  # of the same size
    os.utime(archive, ns=(earlier.st_atime_ns, earlier.st_mtime_ns))  # and time, as by cp -p
    assert contents(unpack(archive, tmp_path))["rain/1.jpg"] == b"two"


def stays_inside(base):
    """The archive `a` is refused, or unpacked without writing outside of the folder for it."""
    with suppress(UserError):
        unpack(base / "a", base / "deep" / "into")
    assert sorted(os.listdir(base)) == ["a", "deep"]
    assert os.listdir(base / "deep") == ["into"]


@pytest.mark.parametrize("mode", ["zip", "w:"])
@pytest.mark.parametrize("name", ["/evil", "../evil", "rain/../../evil", "//evil", "..", "rain/.."])
def test_nothing_is_written_outside(tmp_path, mode, name):
    for odd in (name, name.replace("/", "\\"), f"{tmp_path}{name}"):
        write(tmp_path / "a", {"rain/1.jpg": b"1", odd: b"evil"}, mode)
        stays_inside(tmp_path)


# Symbolic links, wherever they lead: chains of them trick older Pythons' filter (CVE-2025-4517).
ODD = [(tarfile.SYMTYPE, to) for to in ("1.jpg", "/etc/passwd")]
ODD += [(tarfile.LNKTYPE, to) for to in ("/etc/passwd", "../a", "nowhere")]
ODD += [(tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")]
BOMBS = {"1.bmp": bytes(4 << 20)}, {f"{n}": b"" for n in range(400)}
REFUSED = [("w:", {"1.jpg": b"1"}, [("s.jpg", *odd)], "cannot be unpacked") for odd in ODD]
REFUSED += [(m, {"1.jpg": b"1", "./1.jpg": b"2"}, [], "same name") for m in ("zip", "w:")]
FAR = "far larger than its compressed size"
REFUSED += [(m, bomb, [], FAR) for m in ("zip", "w:gz") for bomb in BOMBS]


@pytest.mark.parametrize(("mode", "files", "odd", "says"), REFUSED)
def test_odd_entries_are_refused(mode, files, odd, says, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 17)
    monkeypatch.setattr(archives, "MAX_EXPANSION", 3)
    refused(tmp_path, write(tmp_path / "a", files, mode, odd), says)


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_truncated_archives_and_damaged_headers_are_refused(tmp_path, mode):
    """Also at the borders of entries, where tarfile takes the end for granted."""
    path = write(tmp_path / "a", {f"{n}.jpg": os.urandom(700) for n in range(9)}, mode)
    data = path.read_bytes()
    if mode == "w:":  # a bit in the checksum of the third header
        damaged = bytearray(data)
        damaged[2 * 1536 + 150] ^= 1
        path.write_bytes(damaged)
        refused(tmp_path, path, "damaged in a header")
        data = data.rstrip(b"\0")
    for cut in {*range(0, len(data), len(data) // 9), *range(512, len(data), 1536), len(data) - 1}:
        path.write_bytes(data[:cut])
        refused(tmp_path, path)


def test_an_encrypted_zip(tmp_path):
    data = (path := write(tmp_path / "a.zip", {"1.jpg": b"1"})).read_bytes()
    for before in (b"PK\3\4\x14\0", b"PK\1\2\x14\3\x14\0"):  # flags of the entry, of the index
        data = data.replace(before + b"\0", before + b"\1")
    path.write_bytes(data)
    refused(tmp_path, path, "encrypted.*: give a complete archive, the unpacked folder or a CSV$")
