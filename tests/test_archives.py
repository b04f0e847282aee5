import io
import lzma
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import UserError
from data import archives
from data.archives import unpack
from data.locks import only_one

REPO = Path(__file__).parents[1]
FILES = {"rain/1.jpg": b"one", "rain/deep/2.jpg": b"", "snow/é 3.jpg": b"three" * 9999}


def write_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as packed:
        packed.mkdir("empty")
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def write_tar(path, files, mode="w:", members=()):
    with tarfile.open(path, mode) as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
        for name, kind, to in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            packed.addfile(member)
    return path


def contents(folder):
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refused(tmp_path, archive, said):
    """That the archive is refused with these words, and that nothing of it is left anywhere."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as error:
        unpack(archive, tmp_path / "deep" / "into")
    assert len(str(error.value).splitlines()) <= 2
    left = set(tmp_path.rglob("*")) - before
    assert left <= {tmp_path / "deep", tmp_path / "deep" / "into"}


@pytest.mark.parametrize("mode", ["zip", "zip-stored", "w:", "w:gz", "w:bz2", "w:xz", "pax", "gnu"])
def test_archives_are_unpacked_whatever_their_name(tmp_path, mode):
    archive = tmp_path / "photos.zip.tar"
    if mode.startswith("zip"):
        method = zipfile.ZIP_STORED if mode == "zip-stored" else zipfile.ZIP_DEFLATED
        write_zip(archive, FILES, compression=method)
    elif mode in ("pax", "gnu"):
        long = {"a" * 120 + "/" + "b" * 200: b"long", **FILES}
        form = tarfile.PAX_FORMAT if mode == "pax" else tarfile.GNU_FORMAT
        with tarfile.open(archive, "w", format=form) as packed:
            for name, data in long.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                packed.addfile(member, io.BytesIO(data))
        assert contents(unpack(archive, tmp_path / "into")) == long
        return
    else:
        write_tar(archive, FILES, mode)
    folder = unpack(archive, tmp_path / "new" / "into")
    assert folder.parent == tmp_path / "new" / "into"
    assert contents(folder) == FILES
    assert os.listdir(folder.parent) == [folder.name]


def test_the_same_archive_is_unpacked_once(tmp_path):
    archive = write_zip(tmp_path / "photos.zip", FILES)
    first = unpack(archive, tmp_path)
    (first / "rain" / "1.jpg").write_bytes(b"marked")
    assert unpack(archive, tmp_path) == first
    assert (first / "rain" / "1.jpg").read_bytes() == b"marked"
    write_zip(archive, {**FILES, "rain/1.jpg": b"two"})
    second = unpack(archive, tmp_path)
    assert second != first
    assert (second / "rain" / "1.jpg").read_bytes() == b"two"


def test_names_written_on_windows_and_odd_names(tmp_path):
    files = {"rain\\1.jpg": b"1", "./snow//2.jpg": b"2", "snow/new\nline": b"3"}
    folder = unpack(write_zip(tmp_path / "a.zip", files), tmp_path)
    assert contents(folder) == {"rain/1.jpg": b"1", "snow/2.jpg": b"2", "snow/new\nline": b"3"}
    raw = os.fsdecode(b"snow/\xff\xfe.jpg")
    assert contents(unpack(write_tar(tmp_path / "a.tar", {raw: b"4"}), tmp_path)) == {raw: b"4"}


OUTSIDE = [
    "/evil",
    "../evil",
    "rain/../../evil",
    "rain/..",
    "..",
    "//evil",
    "/../evil",
    "./../evil",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\evil", "\\evil"])
def test_zip_names_that_lead_out_are_refused(tmp_path, name):
    refused(
        tmp_path, write_zip(tmp_path / "a.zip", {"rain/1.jpg": b"1", name: b"evil"}), "leads out"
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_tar_names_and_links_that_lead_out_are_refused(tmp_path, name):
    archive = tmp_path / "a.tar"
    refused(tmp_path, write_tar(archive, {"rain/1.jpg": b"1", name: b"evil"}), "leads out")
    for kind in (tarfile.LNKTYPE, tarfile.DIRTYPE):
        refused(tmp_path, write_tar(archive, {}, members=[(name, kind, "rain")]), "leads out")
    refused(tmp_path, write_tar(archive, {}, members=[("x", tarfile.LNKTYPE, name)]), "leads out")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_absolute_name_is_refused_where_it_could_be_written(tmp_path, write):
    outside = tmp_path / "outside"
    outside.mkdir()
    refused(tmp_path, write(tmp_path / "a", {str(outside / "evil"): b"evil"}), "leads out")


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("rain", "rain/1.jpg"), "File exists|Not a directory"),
        (("rain/1.jpg", "rain"), "Is a directory"),
        (("rain/" + "x" * 300,), "File name too long"),
    ],
)
def test_names_that_no_disk_takes_are_told_in_one_line(tmp_path, write, names, said):
    refused(tmp_path, write(tmp_path / "a", dict.fromkeys(names, b"1")), said)


@pytest.mark.parametrize("to", ["/etc/passwd", "../../evil", "../..", "x/../../../evil", ".."])
def test_symbolic_links_that_lead_out_are_refused(tmp_path, to):
    link = [("rain/link", tarfile.SYMTYPE, to)]
    archive = write_tar(tmp_path / "a.tar", {"rain/1.jpg": b"1"}, members=link)
    zipped = tmp_path / "a.zip"
    with zipfile.ZipFile(zipped, "w") as packed:
        info = zipfile.ZipInfo("rain/link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, to)
    if to == "..":  # of rain/link this is the top folder: inside, but no photo
        for path in (archive, zipped):
            assert not (unpack(path, tmp_path / "into") / "rain" / "link").exists()
    else:
        refused(tmp_path, archive, "leads out")
        refused(tmp_path, zipped, "leads out")


def test_a_file_is_never_written_through_a_link(tmp_path):
    """The old trick: a link to a folder outside, then a file below the link's name."""
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as packed:
        for name, to in (("d", "."), ("d/e", ".."), ("link", "d/e/../../outside")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, to
            packed.addfile(member)
        member = tarfile.TarInfo("link/evil")
        member.size = 4
        packed.addfile(member, io.BytesIO(b"evil"))
    assert contents(unpack(archive, tmp_path / "into")) == {"link/evil": b"evil"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, str(outside))
        packed.writestr("link/evil", b"evil")
    refused(tmp_path, tmp_path / "a.zip", "leads out")
    assert not list(outside.iterdir())


@pytest.mark.parametrize("start", ["PK", "BZh", "BZh9"])
def test_a_tar_is_no_zip_for_the_first_letters_of_its_first_name(tmp_path, start):
    """An uncompressed tar begins with that name."""
    files = {f"{start}U/rain/1.jpg": b"1", f"{start}U/snow/1.jpg": b"2"}
    assert contents(unpack(write_tar(tmp_path / "a.tar", files, "w:"), tmp_path / "into")) == files


def test_links_inside_become_the_files_they_lead_to(tmp_path):
    links = [
        ("snow/hard.jpg", tarfile.LNKTYPE, "rain/1.jpg"),
        ("snow/soft.jpg", tarfile.SYMTYPE, "../rain/1.jpg"),
        ("snow/nothing.jpg", tarfile.SYMTYPE, "nowhere"),
        ("snow/self.jpg", tarfile.SYMTYPE, "self.jpg"),
        ("rain/twice.jpg", tarfile.SYMTYPE, "third.jpg"),
        ("rain/third.jpg", tarfile.SYMTYPE, "1.jpg"),
        ("rain/1.jpg", tarfile.SYMTYPE, "../snow/soft.jpg"),
    ]
    folder = unpack(write_tar(tmp_path / "a.tar", {"rain/1.jpg": b"1"}, members=links), tmp_path)
    linked = ("snow/hard.jpg", "snow/soft.jpg", "rain/twice.jpg", "rain/third.jpg")
    same = dict.fromkeys(("rain/1.jpg", *linked), b"1")
    assert contents(folder) == same
    assert not any(path.is_symlink() for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path, kind):
    refused(tmp_path, write_tar(tmp_path / "a.tar", {}, members=[("x.jpg", kind, "")]), "device")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        info = zipfile.ZipInfo("x.jpg")
        info.create_system, info.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
        packed.writestr(info, b"")
    refused(tmp_path, tmp_path / "a.zip", "device")


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_bombs_are_refused(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_ENTRIES", 100)
    zeros = {"rain/1.bmp": bytes(4 << 20)}
    many = {f"rain/{n}": b"" for n in range(5000)}
    path = tmp_path / "bomb"
    for files in (zeros, many):
        if mode == "zip":
            write_zip(path, files, compression=zipfile.ZIP_BZIP2)
            if files is many:  # an entry takes more than the least size in a zip's own index
                monkeypatch.setattr(archives, "MIN_BYTES_PER_ENTRY", 1000)
        else:
            write_tar(path, files, mode)
        refused(tmp_path, path, "refused: .* are no photos")


@pytest.mark.parametrize("mode", ["zip", "w:", "w:gz"])
def test_more_entries_than_a_disk_takes_are_refused_however_large_the_archive(
    tmp_path, mode, monkeypatch
):
    monkeypatch.setattr(archives, "MAX_ENTRIES", 20)
    path = tmp_path / "a"
    for count in (20, 21):
        files = {f"rain/{n}.jpg": os.urandom(3000) for n in range(count - (mode == "zip"))}
        write_zip(path, files) if mode == "zip" else write_tar(path, files, mode)  # and a folder
        if count == 20:
            assert contents(unpack(path, tmp_path / "fine")) == files
        else:
            refused(tmp_path, path, "refused: more than 20 entries; unpack it by hand")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path):
    """What its index says is checked before; more than that is never written."""
    path = write_zip(
        tmp_path / "a.zip", {"1.bmp": bytes(4 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    true, false = struct.pack("<I", 4 << 20), struct.pack("<I", 10)
    path.write_bytes(path.read_bytes().replace(true, false))
    refused(tmp_path, path, "truncated, broken")


def test_a_bomb_in_a_tar_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 20
    with tarfile.open(tmp_path / "plain", "w") as packed:
        packed.addfile(header, io.BytesIO(bytes(8 << 20)))
    (tmp_path / "bomb").write_bytes(lzma.compress((tmp_path / "plain").read_bytes()))
    refused(tmp_path, tmp_path / "bomb", "are no photos")


def test_a_sparse_tar_is_refused_before_it_fills_the_disk(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("needs GNU tar")
    made = subprocess.run([tar, "-cSf", "a.tar", "sparse"], cwd=tmp_path, check=False)
    if made.returncode:
        pytest.skip("needs GNU tar")
    refused(tmp_path, tmp_path / "a.tar", "are no photos")


def test_a_disk_without_room_is_told_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=40_000))
    photos = {f"rain/{n}.jpg": os.urandom(10_000) for n in range(9)}
    refused(tmp_path, write_zip(tmp_path / "a.zip", photos), "no room")
    refused(tmp_path, write_tar(tmp_path / "a.tgz", photos, "w:gz"), "no room")
    one = {"rain/1.bmp": bytes(90_000)}  # whose size is not known before it is reached
    refused(tmp_path, write_tar(tmp_path / "a.tgz", one, "w:gz"), "no room")


def test_a_disk_that_runs_full_leaves_nothing(tmp_path):
    """The size of files is limited, as a full disk would: a clear error in a process of its own."""
    archive = write_tar(tmp_path / "a.tar", {"rain/1.jpg": bytes(3_000_000)})
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from data.archives import UserError, unpack\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try:\n    unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except UserError as error:\n    print(error)\n"
    )
    run = [sys.executable, "-c", code, archive, tmp_path / "into"]
    done = subprocess.run(run, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert "cannot unpack" in done.stdout
    assert "File too large" in done.stdout
    assert list((tmp_path / "into").iterdir()) == []


def test_an_encrypted_zip_is_told(tmp_path):
    data = bytearray(write_zip(tmp_path / "a.zip", {"rain/1.jpg": b"1"}).read_bytes())
    for marker, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = -1
        while (position := data.find(marker, position + 1)) >= 0:
            data[position + offset] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path, tmp_path / "a.zip", "encrypted: unpack it by hand")


@pytest.mark.parametrize("data", [b"", b"PK", b"hello" * 300, b"\xff\xd8\xff\xe0" + bytes(2000)])
def test_a_file_that_is_no_archive(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path, tmp_path / "a.zip", "no zip or tar")
    refused(tmp_path, tmp_path, "neither a folder nor")


@pytest.mark.parametrize("mode", ["zip", "w:", "w:gz", "w:bz2", "w:xz"])
def test_truncated_archives_are_refused(tmp_path, mode):
    path = tmp_path / "whole"
    files = {f"rain/{n}.jpg": os.urandom(700) for n in range(9)}
    data = (write_zip(path, files) if mode == "zip" else write_tar(path, files, mode)).read_bytes()
    if mode == "w:":
        data = data.rstrip(b"\0") + bytes(1024 + -len(data.rstrip(b"\0")) % 512)
    path.unlink()
    cuts = {len(data) * n // 8 for n in range(1, 8)} | {len(data) - n for n in (1, 2, 9)}
    if mode == "w:":  # at the borders of entries too, where tarfile takes the end for granted
        cuts = {cut for cut in cuts if cut < len(data) - 512} | {512 * n for n in range(1, 28)}
    for cut in sorted(cuts):
        (tmp_path / "cut").write_bytes(data[:cut])
        refused(tmp_path, tmp_path / "cut", "truncated, broken")


def test_a_damaged_header_does_not_end_a_tar(tmp_path):
    """To tarfile it does, without a word, and the photos behind it are lost."""
    path = write_tar(tmp_path / "a.tar", {f"rain/{n}.jpg": b"photo" for n in range(9)})
    raw = bytearray(path.read_bytes())
    raw[4 * 1024 + 150] ^= 1  # in the checksum of the fifth header
    path.write_bytes(raw)
    refused(tmp_path, path, "bad header")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_never_write_outside(tmp_path_factory, data):
    """Any damage either is refused or yields files inside the folder, never another exception."""
    base = tmp_path_factory.mktemp("flipped")
    mode = data.draw(st.sampled_from(["zip", "w:", "w:gz"]))
    path = base / "archive"
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        folder = unpack(path, base / "deep" / "into")
    except UserError:
        assert list((base / "deep" / "into").iterdir()) == []
    else:
        assert all(path.is_file() for path in folder.rglob("*") if not path.is_dir())
    assert sorted(os.listdir(base)) == ["archive", "deep"]
    assert os.listdir(base / "deep") == ["into"]


def test_a_deep_path_is_refused(tmp_path):
    refused(tmp_path, write_zip(tmp_path / "a.zip", {"a/" * 1500 + "b": b""}), "folders deep")


def test_two_processes_at_once(tmp_path):
    files = {f"rain/{n}.jpg": os.urandom(2000) for n in range(1500)}
    archive = write_zip(tmp_path / "a.zip", files)
    code = (
        "import sys; from pathlib import Path; from data.archives import unpack; "
        "print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    run = [sys.executable, "-c", code, archive, tmp_path / "into"]
    processes = [subprocess.Popen(run, cwd=REPO, stdout=subprocess.PIPE) for _ in range(3)]
    folders = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(folders) == 1
    folder = Path(os.fsdecode(folders.pop().rstrip(b"\n")))
    assert contents(folder) == files
    assert os.listdir(tmp_path / "into") == [folder.name]


def test_a_killed_process_leaves_nothing_that_lasts(tmp_path):
    files = {f"rain/{n}.jpg": b"photo" for n in range(500)}
    archive = write_zip(tmp_path / "a.zip", files)
    into = tmp_path / "into"
    code = (
        "import os, signal, sys; from pathlib import Path; from data.archives import unpack\n"
        "def kill(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('/rain/250.jpg'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, archive, into], cwd=REPO, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(contents(into / ".unpacking")) == 250
    folder = unpack(archive, into)
    assert contents(folder) == files
    assert os.listdir(into) == [folder.name]


def test_only_one_holds_a_lock(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from data.locks import only_one\n"
        "for _ in range(150):\n"
        "    with only_one(Path(sys.argv[1])):\n"
        "        path = Path(sys.argv[2]); path.write_text(str(int(path.read_text()) + 1))\n"
    )
    counter = tmp_path / "counter"
    counter.write_text("0")
    run = [sys.executable, "-c", code, lock, counter]
    processes = [subprocess.Popen(run, cwd=REPO, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert counter.read_text() == "450"
    assert not lock.exists()
    with only_one(lock):
        assert lock.exists()


def test_what_several_processes_write_at_once_is_always_whole(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from data.locks import write_whole\n"
        "for number in range(300):\n"
        "    write_whole(Path(sys.argv[1]), sys.argv[2] * (1 + number % 7 * 5000))\n"
        "    assert len(set(Path(sys.argv[1]).read_text())) == 1\n"
    )
    run = [sys.executable, "-c", code, path]
    processes = [
        subprocess.Popen([*run, letter], cwd=REPO, stderr=subprocess.PIPE, text=True)
        for letter in "abc"
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert os.listdir(tmp_path) == ["file"]
