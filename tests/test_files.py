import os
import time
from contextlib import nullcontext
from errno import EACCES, EIO, ENOLCK, EROFS
from unittest.mock import Mock

import pytest

from config import UserError
from data import files
from tests.photo_folders import start

HEAD = """
import os, sys; from pathlib import Path
from data.files import *
path, word = Path(sys.argv[1]), sys.argv[2]
"""


def running(code, path, word):
    return start("-c", HEAD + code, path, word, stdin=-1)


def test_a_file_is_written_with_the_usual_permissions_and_never_through_a_link(tmp_path):
    path, plain = tmp_path / "new" / "file", tmp_path / "plain"
    plain.touch()
    for content in (b"bytes", memoryview(b"memory"), "text \udcff"):
        files.atomic_write(path, content)
        assert path.stat().st_mode == plain.stat().st_mode
    assert path.read_bytes() == b"text \xff"
    with pytest.raises(OSError, match=f"directory: '{path.parent}'"):
        files.atomic_write(path.parent, "over a folder")
    path.unlink()
    path.symlink_to(plain)
    files.atomic_write(path, "in place of the link")
    assert (path.read_text(), plain.read_text()) == ("in place of the link", "")
    assert sorted(os.listdir(tmp_path)) == ["new", "plain"]


def test_what_several_processes_write_at_once_is_always_whole(tmp_path):
    code = """for number in range(100):
        atomic_write(path / "file", word * (1 + number % 7 * 5000))
        assert len(set((path / "file").read_text())) == 1"""
    writers = [running(code, tmp_path, letter) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_replaces_another_only_when_it_is_complete(tmp_path):
    path = tmp_path / "[folder]"
    for number in "12":
        with files.atomic_folder(path) as new:
            (new / number).touch()
        assert os.listdir(path) == [number]
    with pytest.raises(KeyError), files.atomic_folder(path):
        raise KeyError
    running("with atomic_folder(path): os.kill(os.getpid(), 9)", path, "").communicate()
    assert (os.listdir(path), len(os.listdir(tmp_path))) == (["2"], 2)
    with files.atomic_folder(path):  # removes what the killed process has left
        pass
    assert os.listdir(tmp_path) == [path.name]


def test_a_lock_is_held_until_its_process_ends_and_waited_for_with_a_word(tmp_path):
    code = "with lock(path): (path / word).touch(); input()"
    first = running(code, tmp_path, "first")
    while not (tmp_path / "first").exists():
        assert first.poll() is None
    with files.locks(tmp_path) as hold:
        assert (hold(""), hold("another name")) == (False, True)
    second = running(code, tmp_path, "second")
    assert second.stderr.readline() == f"waiting for another process in {str(tmp_path)!r} ...\n"
    time.sleep(0.5)
    assert not (tmp_path / "second").exists()
    first.kill()
    assert second.communicate("\n", timeout=60) == ("", "")
    assert (tmp_path / "second").exists()


def test_a_name_is_held_by_many_that_read_or_by_one_that_writes(tmp_path):
    code = "with locks(path) as hold: print(hold('run', shared=word == 'shared'))"
    ways = "shared", "alone"
    with files.locks(tmp_path) as hold:
        for shared in (True, False, True):
            assert hold("run", shared=shared)
            others = [running(code, tmp_path, way).communicate()[0] for way in ways]
            assert others == [f"{shared}\n", "False\n"]


@pytest.mark.parametrize(
    ("function", "numbers"), [("fcntl.lockf", [ENOLCK, EIO]), ("os.open", [EROFS, EACCES, EIO])]
)
def test_no_lock_is_taken_where_none_can_be(function, numbers, tmp_path, monkeypatch, capsys):
    for number in numbers:
        monkeypatch.setattr(function, Mock(side_effect=OSError(number, "no")))
        expected = pytest.raises(OSError, match="no") if number == EIO else nullcontext()
        with expected, files.lock(tmp_path):
            pass
        assert capsys.readouterr().err.count("does not support locks") == (number == ENOLCK)


def test_json_that_is_damaged_edited_or_missing_is_refused(tmp_path):
    path, content = tmp_path / "a.json", {"run": "é\udcff", "wrong": [1, 2], "test": {"loss": 0.5}}
    files.write_json(path, content)
    assert files.read_json(path) == content
    whole = path.read_bytes()
    edits = whole.replace(b"0.5", b"0.6"), whole.replace(b"1,", b""), whole.replace(b"run", b"ran")
    for broken in (b"", b"\xff", b"[]", b"{}", b"[" * 99_999, whole[:-9], whole + b"{", *edits):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.json is missing, damaged, .*--overwrite"):
            files.read_json(path)
    for missing in (tmp_path / "b.json", path / "below", tmp_path):
        with pytest.raises(UserError, match="is missing, damaged"):
            files.read_json(missing)
        with pytest.raises(FileNotFoundError):
            files.open_regular(missing)
        files.remove(missing)
    assert not tmp_path.exists()
