import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import UserError
from data import archives
from data.archives import unpack
from data.files import lock

REPO = Path(__file__).parents[1]
FILES = {"rain/1.jpg": b"one", "rain/deep/2.jpg": b"", "snow/é 3.jpg": b"three" * 9999}
TARS = ("w:", "w:gz", "w:bz2", "w:xz")


def write(path, files, mode="zip", odd=()):
    """An archive of files, and of odd entries: name, type, and where it links to."""
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in {"empty/": b"", **files}.items():
                packed.writestr(name, data)
            for name, kind, to in odd:
                info = zipfile.ZipInfo(name)
                info.external_attr = (kind | 0o777) << 16
                packed.writestr(info, to)
        return path
    with tarfile.open(path, mode) as packed:
        for name, kind, data in [*((n, tarfile.REGTYPE, d) for n, d in files.items()), *odd]:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(data)
            else:
                member.linkname = data
            packed.addfile(member, io.BytesIO(data) if member.size else None)
    return path


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != archives.LISTING]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refused(tmp_path, archive, said="cannot be unpacked"):
    """The archive is refused with these words in one or two lines, and nothing is left of it."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as error:
        unpack(archive, tmp_path / "deep" / "into")
    assert len(str(error.value).splitlines()) <= 2
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "deep", tmp_path / "deep" / "into"}


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_archives_are_unpacked_whatever_their_name(tmp_path, mode):
    odd = {f"PK{'a' * 120}/{'b' * 200}": b"long", "snow/new\nline": b"3"}
    if mode != "zip":  # a zip's names are unicode
        odd[os.fsdecode(b"snow/\xff\xfe.jpg")] = b"4"
    hard = [("snow/link.jpg", tarfile.LNKTYPE, "rain/1.jpg")] if mode != "zip" else []
    archive = write(tmp_path / os.fsdecode(b"\xff.zip.tar"), odd | FILES, mode, hard)
    folder = unpack(archive, tmp_path / "new" / "into")
    linked = {name: FILES[to] for name, _, to in hard}
    assert contents(folder) == odd | FILES | linked
    assert os.listdir(tmp_path / "new" / "into") == [folder.name]


def test_names_written_on_windows(tmp_path):
    archive = write(tmp_path / "a.zip", {"rain\\1.jpg": b"1", "./snow//2.jpg": b"2"})
    assert contents(unpack(archive, tmp_path)) == {"rain/1.jpg": b"1", "snow/2.jpg": b"2"}


def test_an_archive_is_unpacked_once_and_anew_where_it_or_its_files_change(tmp_path):
    archive = write(tmp_path / "[photos].zip", FILES)
    folder = unpack(archive, tmp_path)
    inode = folder.stat().st_ino
    assert unpack(archive, tmp_path) == folder
    assert folder.stat().st_ino == inode
    for change in (lambda file: file.unlink(), lambda file: file.write_bytes(b"")):  # a cleaner
        change(folder / "rain" / "1.jpg")
        assert unpack(archive, tmp_path) == folder
        assert contents(folder) == FILES
    write(archive, {**FILES, "rain/1.jpg": b"other"})
    assert contents(unpack(archive, tmp_path))["rain/1.jpg"] == b"other"


@pytest.mark.parametrize("mode", ["zip", "w:"])
@pytest.mark.parametrize("name", ["/evil", "../evil", "rain/../../evil", "//evil", "..", "rain/.."])
def test_nothing_is_written_outside(tmp_path, mode, name):
    """Refused, or written inside under the rest of its name."""
    for odd in (name, name.replace("/", "\\"), f"{tmp_path}{name}"):
        archive = write(tmp_path / "a", {"rain/1.jpg": b"1", odd: b"evil"}, mode)
        with suppress(UserError):
            unpack(archive, tmp_path / "deep" / "into")
        assert sorted(os.listdir(tmp_path)) == ["a", "deep"]
        assert os.listdir(tmp_path / "deep") == ["into"]


@pytest.mark.parametrize(
    ("mode", "kind", "to"),
    [
        *(("w:", tarfile.SYMTYPE, to) for to in ("1.jpg", "/etc/passwd", "../../..", "s.jpg")),
        *(("w:", tarfile.LNKTYPE, to) for to in ("/etc/passwd", "../a", "nowhere", "s.jpg")),
        *(("w:", kind, "") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        ("zip", stat.S_IFLNK, "/etc/passwd"), ("zip", stat.S_IFCHR, ""), ("zip", stat.S_IFIFO, ""),
    ],
)  # fmt: skip
def test_links_and_devices_are_refused(tmp_path, mode, kind, to):
    refused(tmp_path, write(tmp_path / "a", {"1.jpg": b"1"}, mode, [("s.jpg", kind, to)]))


def test_links_that_trick_the_filter_of_older_pythons(tmp_path):
    """CVE-2025-4517: a chain of links whose path is too long to be resolved."""
    odd, path, steps = [], "", "abcdefghijklmnop"
    for step in steps:
        odd.append((f"{path}{'d' * 247}", tarfile.DIRTYPE, ""))
        odd.append((f"{path}{step}", tarfile.SYMTYPE, "d" * 247))
        path += "d" * 247 + "/"
    out = "/".join(steps) + "/" + "l" * 254
    odd += [(out, tarfile.SYMTYPE, "../" * len(steps)), ("x", tarfile.SYMTYPE, out + "/..")]
    refused(tmp_path, write(tmp_path / "a", {}, "w:", [*odd, ("x/evil", tarfile.DIRTYPE, "")]))


@pytest.mark.parametrize("mode", ["zip", "w:"])
def test_two_entries_of_one_name_are_refused(tmp_path, mode):
    refused(tmp_path, write(tmp_path / "a", {"1.jpg": b"1", "./1.jpg": b"2"}, mode), "same name")


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("files", [{"1.bmp": bytes(4 << 20)}, {f"{n}": b"" for n in range(400)}])
def test_bombs_are_refused(tmp_path, monkeypatch, mode, files):
    """Of many bytes or of many files."""
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 17)
    monkeypatch.setattr(archives, "MAX_EXPANSION", 3)
    refused(tmp_path, write(tmp_path / "a", files, mode), "far larger than its packed size")


@pytest.mark.parametrize("mode", ["zip", *TARS])
def test_truncated_archives_are_refused(tmp_path, mode):
    """Also at the borders of entries, where tarfile takes the end for granted."""
    data = write(tmp_path / "a", {f"{n}.jpg": os.urandom(700) for n in range(9)}, mode).read_bytes()
    (tmp_path / "a").unlink()
    data = data.rstrip(b"\0") if mode == "w:" else data
    cuts = {*range(0, len(data), len(data) // 9), *range(512, len(data), 1536), len(data) - 1}
    for cut in cuts:
        (tmp_path / "cut").write_bytes(data[:cut])
        refused(tmp_path, tmp_path / "cut")


def test_a_damaged_header_does_not_end_a_tar(tmp_path):
    path = write(tmp_path / "a.tar", {f"rain/{n}.jpg": b"photo" for n in range(9)}, "w:")
    raw = bytearray(path.read_bytes())
    raw[4 * 1024 + 150] ^= 1  # in the checksum of the fifth header
    path.write_bytes(raw)
    refused(tmp_path, path, "damaged in a header")


def test_an_encrypted_zip(tmp_path):
    """The flag stands in the entry and in the index."""
    data = write(tmp_path / "a.zip", {"1.jpg": b"1"}).read_bytes()
    for before in (b"PK\3\4\x14\0", b"PK\1\2\x14\3\x14\0"):
        data = data.replace(before + b"\0", before + b"\1")
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path, tmp_path / "a.zip", "encrypted.*unpack it by hand")


@given(st.data())
@settings(max_examples=60)
def test_flipped_bytes_are_refused_or_yield_files_inside(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("flipped")
    path = write(base / "a", FILES, data.draw(st.sampled_from(["zip", "w:", "w:gz"])))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with suppress(UserError):
        unpack(path, base / "deep" / "into")
    assert sorted(os.listdir(base)) == ["a", "deep"]
    assert os.listdir(base / "deep") == ["into"]


def test_another_process_is_waited_for(tmp_path):
    archive = write(tmp_path / "a.zip", FILES)
    code = "from data.archives import *; import sys; unpack(*map(Path, sys.argv[1:]))"
    with lock(tmp_path):
        waiting = subprocess.Popen([sys.executable, "-c", code, archive, tmp_path], cwd=REPO)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        assert os.listdir(tmp_path) == ["a.zip"]
    assert waiting.wait(60) == 0
    assert contents(next(tmp_path.glob("a-*"))) == FILES
