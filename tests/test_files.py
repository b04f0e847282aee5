import contextlib
import csv
import errno
import io
import os
import time
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import UserError
from data.files import (
    atomic_folder,
    atomic_write,
    csv_text,
    lock,
    locks,
    open_regular,
    read_json,
    remove,
    write_json,
)
from tests.photo_folders import start

HEAD = """
import os, sys; from pathlib import Path
if sys.argv[1] == "hidden": sys.modules["fcntl"] = None  # as on Windows
from data.files import *
path, word = Path(sys.argv[2]), sys.argv[3]
"""
WRITE = """
for number in range(100):
    atomic_write(path / "file", word * (1 + number % 7 * 5000))
    assert len(set((path / "file").read_text())) == 1
with lock(path), atomic_folder(path / word) as folder: (folder / "x").touch()
"""


def running(code, *arguments):
    return start("-c", HEAD + code, *arguments, stdin=-1)


def test_a_file_is_written_with_the_usual_permissions_and_never_through_a_link(tmp_path):
    path, plain = tmp_path / "new" / "file", tmp_path / "plain"
    plain.touch()
    for content in (b"bytes", memoryview(b"memory"), "text \udcff"):
        atomic_write(path, content)
        assert path.stat().st_mode == plain.stat().st_mode
    assert path.read_bytes() == b"text \xff"
    with pytest.raises(OSError, match="directory"):
        atomic_write(path.parent, "over a folder")
    path.unlink()
    path.symlink_to(plain)
    atomic_write(path, "in place of the link")
    assert (path.read_text(), plain.read_text()) == ("in place of the link", "")
    assert sorted(os.listdir(tmp_path)) == ["new", "plain"]


@pytest.mark.parametrize("fcntl", ["there", "hidden"])
def test_what_several_processes_write_at_once_is_always_whole(tmp_path, fcntl):
    writers = [running(WRITE, fcntl, tmp_path, letter) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names - {".lock"} == {"file", "a", "b", "c", "a/x", "b/x", "c/x"}


def test_a_folder_replaces_another_only_when_it_is_complete(tmp_path):
    path = tmp_path / "[folder]"
    for number in "12":
        with atomic_folder(path) as new:
            (new / number).touch()
        assert os.listdir(path) == [number]
    with pytest.raises(KeyError), atomic_folder(path):
        raise KeyError
    running("with atomic_folder(path): os.kill(os.getpid(), 9)", "there", path, "").communicate()
    assert (os.listdir(path), len(os.listdir(tmp_path))) == (["2"], 2)
    with atomic_folder(path):  # removes what the killed process has left
        pass
    assert os.listdir(tmp_path) == [path.name]


def test_a_lock_is_held_until_its_process_ends_and_waited_for_with_a_word(tmp_path):
    code = "with lock(path): (path / word).touch(); input()"
    first = running(code, "there", tmp_path, "first")
    while not (tmp_path / "first").exists():
        assert first.poll() is None
    with locks(tmp_path) as hold:
        assert (hold(""), hold("another name")) == (False, True)
    second = running(code, "there", tmp_path, "second")
    waits = f"waiting for another process in {str(tmp_path)!r} ...\n"
    assert second.stderr.readline() == waits
    time.sleep(0.5)
    assert not (tmp_path / "second").exists()
    first.kill()
    assert second.communicate("\n", timeout=60) == ("", "")
    assert (tmp_path / "second").exists()


def test_a_name_is_held_by_many_that_read_or_by_one_that_writes(tmp_path):
    code = "with locks(path) as hold: print(hold('run', shared=word == 'shared'))"

    def others(word):
        return running(code, "there", tmp_path, word).communicate(timeout=60)

    with locks(tmp_path) as hold:
        for shared, answer in ((True, "True\n"), (False, "False\n"), (True, "True\n")):
            assert hold("run", shared=shared)
            assert others("shared") == (answer, "")
            assert others("alone") == ("False\n", "")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_disk_that_knows_no_locks_is_said_and_any_other_error_raised(
    number, tmp_path, monkeypatch, capsys
):
    def fails(*_):
        raise OSError(number, "no")

    monkeypatch.setattr("fcntl.lockf", fails)
    with contextlib.suppress(OSError), lock(tmp_path):
        assert number == errno.ENOLCK
    assert capsys.readouterr().err.count("knows no locks") == (number == errno.ENOLCK)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_is_only_to_be_read_is_not_locked(number, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(number, "no")

    monkeypatch.setattr("os.open", fails)
    expected = pytest.raises(OSError, match="no") if number == errno.EIO else nullcontext()
    with expected, lock(tmp_path):
        pass


@given(st.lists(st.lists(st.text().filter(lambda text: "\r\n" not in text), min_size=2)))
def test_csv_reads_as_it_was_written(rows):
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows


def test_json_that_is_damaged_edited_or_missing_is_refused(tmp_path):
    path, content = tmp_path / "a.json", {"run": "é\udcff", "wrong": [1, 2], "test": {"loss": 0.5}}
    write_json(path, content)
    assert read_json(path) == content
    whole = path.read_bytes()
    edits = whole.replace(b"0.5", b"0.6"), whole.replace(b"1,", b""), whole.replace(b"run", b"ran")
    for broken in (b"", b"\xff", b"[]", b"{}", b"[" * 99_999, whole[:-9], whole + b"{", *edits):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.json is missing, damaged, .*--overwrite"):
            read_json(path)
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for missing in (tmp_path, tmp_path / "b.json", path / "below", *tmp_path.glob("[lp]i*")):
        with pytest.raises(UserError, match="is missing, damaged"):
            read_json(missing)
        with pytest.raises(FileNotFoundError):
            open_regular(missing)
        remove(missing)
    assert not tmp_path.exists()
